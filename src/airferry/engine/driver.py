"""One typed function a verb: import a base, build, run, export, pull, copy out, remove.

Works on Buildah or Podman, without root and without a daemon, in separate storage. It decides nothing about what is
built and writes no bundle: what comes out are image IDs, documents' bytes and layer files for the caller to hash.
"""

from __future__ import annotations

import re
import secrets as random_names
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from airferry.engine import inside
from airferry.engine.nowhere import NAME_SERVER, OWN_NAME
from airferry.engine.program import EngineChoice, Program, build_error, engine_error, find_engine
from airferry.engine.storage import AS_ON_HOST, StartConditions, Storage
from airferry.engine.transient import TransientImages
from airferry.errors import BuildError, HostError, IntegrityError, RegistryError
from airferry.events import Emit, Progress, silent
from airferry.host import files, locks, process
from airferry.host.canonical import canonical_json
from airferry.host.locks import Thing, making
from airferry.host.parsing import parse_json
from airferry.oci.digest import digest_hex, parse_digest
from airferry.oci.documents import (
    IMAGE_MANIFEST,
    MAX_IMAGE_CONFIG_BYTES,
    MAX_MANIFEST_BYTES,
    Descriptor,
    parse_image_config,
    parse_index,
    parse_manifest,
)
from airferry.oci.platform import Platform

PULL_S = 4 * 3600.0
IMAGE_BUILD_TIMEOUT_S = 12 * 3600.0
EXPORT_S = 4 * 3600.0
OTHER_PLATFORM = "name a base that has this platform, or remove the platform from `platforms:`"
_LAYOUT_FILE = b'{"imageLayoutVersion":"1.0.0"}'
_STEP = re.compile(r"STEP (\d+)/(\d+): ")


@dataclass(frozen=True, slots=True)
class Volume:
    """A folder or file of the host that a container sees. Read-only unless `writable`."""

    host: Path
    container: str
    writable: bool = False

    def __str__(self) -> str:
        if ":" in str(self.host) or ":" in self.container:
            raise HostError(f"`{self.host}` cannot be mounted: its path contains a `:`", hint="use another folder")
        return f"{self.host}:{self.container}:{'rw' if self.writable else 'ro'}"


@dataclass(frozen=True, slots=True)
class ExportedLayer:
    """A layer that a build added: the digest of its tar, its file, and that file's descriptor."""

    diff_id: str
    path: Path
    descriptor: Descriptor


@dataclass(frozen=True, slots=True)
class ExportedImage:
    """What `Engine.export` hands over: the config's bytes, history included, and the layers that the base lacks.

    The order of all layers is that of `rootfs.diff_ids` in the config.
    """

    config_bytes: bytes
    layers: tuple[ExportedLayer, ...]


@dataclass(frozen=True, slots=True)
class ContainerBuild:
    """What a Containerfile is built from. Without `network` a RUN sees a loopback interface only."""

    containerfile: Path
    context: Path
    arguments: Mapping[str, str] = field(default_factory=dict)
    network: bool = False


@dataclass(frozen=True, slots=True)
class ContainerOptions:
    """What a container has around its command. `user` and `workdir` stand for the image's own.

    Without `network` it sees a loopback interface only; with `watch` it sees a network that leads nowhere, and each
    attempt to use it goes to that file, as `engine.nowhere` writes it. Its name is `OWN_NAME` then, and it is told
    neither the name servers nor the known hosts of this host.
    """

    volumes: Sequence[Volume] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    workdir: str | None = None
    user: str | None = None
    network: bool = False
    watch: Path | None = None


DEFAULT_OPTIONS = ContainerOptions()


class Engine:
    """A container engine at work on its own storage. Made by `open_engine`; safe to use from threads.

    Images are pulled one at a time, whichever process pulls, as two platforms of one image share a local name while
    they are pulled; builds, runs and exports may go on side by side.
    """

    def __init__(self, storage: Storage, *, emit: Emit) -> None:
        """Wrap a storage, which others may share."""
        self.storage = storage
        self.transient = TransientImages(storage, emit=emit)
        self._emit = emit

    @property
    def program(self) -> Program:
        """The program that does the work."""
        return self.storage.program

    # --- images in ---------------------------------------------------------------------------------------------------

    def import_base(self, layout: Path, manifest_digest: str, *, platform: Platform, name: str = "base") -> str:
        """Bring one manifest of a layout into the storage and return the image's ID. Idempotent.

        The image is tagged `base_tag(manifest_digest, name)`, a name that depends on the digest alone, so that what a
        build writes into the history does too.

        Raises:
            IntegrityError: the layout does not hold the manifest, or holds other bytes under its digest.
            BuildError: it cannot be pulled, or is for another platform.
        """
        parse_digest(manifest_digest)
        tag = base_tag(manifest_digest, name)
        if (present := self.find_image(tag)) is not None:
            return present
        with self._pulling(f"base `{manifest_digest}`"):
            return self.find_image(tag) or self._import(layout, manifest_digest, platform=platform, tag=tag)

    def _import(self, layout: Path, manifest_digest: str, *, platform: Platform, tag: str) -> str:
        path = layout / "blobs" / "sha256" / digest_hex(manifest_digest)
        if not path.is_file():
            raise IntegrityError(f"`{layout}` does not hold the manifest `{manifest_digest}`", digest=manifest_digest)
        data = files.read_bounded(path, limit_bytes=MAX_MANIFEST_BYTES)
        media_type = parse_manifest(data, what=f"manifest `{manifest_digest}`").media_type or IMAGE_MANIFEST
        index = {
            "schemaVersion": 2,
            "manifests": [{"mediaType": media_type, "digest": manifest_digest, "size": len(data)}],
        }
        with files.scratch_directory(self.storage.temporary) as folder:
            # The engine names an image after the path that it is given, which must be lower case and without `:`.
            relative = f"base-{digest_hex(manifest_digest)[:12]}"
            part = files.ensure_directory(folder / relative)
            (part / "oci-layout").write_bytes(_LAYOUT_FILE)
            (part / "index.json").write_bytes(canonical_json(index))
            (part / "blobs").symlink_to(files.resolved(layout / "blobs"), target_is_directory=True)
            image = self._pull(f"oci:{relative}", cwd=folder, arguments=[], what=f"base `{manifest_digest}`")
        config = self.inspect(image)
        if not platform.accepts(config):
            self.remove_image(image)
            raise BuildError(f"base `{manifest_digest}` is for `{config}`, expected `{platform}`", hint=OTHER_PLATFORM)
        self._command(["tag", image, tag], doing=f"tag `{tag}`")
        return image

    def pull_from_registry(
        self,
        reference: str,
        *,
        platform: Platform | None = None,
        plain_http: bool = False,
        authfile: Path | None = None,
    ) -> str:
        """Pull an image from a registry and return its ID.

        Raises:
            RegistryError: the registry does not hand it over.
        """
        arguments = _platform_arguments(platform)
        arguments += ["--tls-verify=false"] if plain_http else []
        arguments += ["--authfile", str(authfile)] if authfile else []
        try:
            with self._pulling(f"`{reference}`"):
                return self._pull(f"docker://{reference}", cwd=None, arguments=arguments, what=f"`{reference}`")
        except BuildError as error:
            raise RegistryError(error.message, hint=error.hint, tail=error.tail) from error

    def _pulling(self, what: str) -> AbstractContextManager[None]:
        doing = f"bringing {what} into container storage"
        return making(self.storage.state, Thing.ENGINE_IMAGES, "images", doing=doing, emit=self._emit)

    def _pull(self, source: str, *, cwd: Path | None, arguments: Sequence[str], what: str) -> str:
        try:
            done = self.storage.invoke(["pull", "-q", *arguments, source], timeout_s=PULL_S, cwd=cwd)
        except process.ProcessFailed as failure:
            raise engine_error(failure, doing=f"pull {what}") from failure
        return done.text.split()[-1].removeprefix("sha256:")

    # --- images in the storage ---------------------------------------------------------------------------------------

    def find_image(self, name: str) -> str | None:
        """Return the ID of the image that a name stands for, or None."""
        inspect = ["image", "inspect", "--format", "{{.Id}}", name]
        if self.program.kind == "buildah":
            inspect = ["inspect", "--type", "image", "--format", "{{.FromImageID}}", name]
        done = self.storage.invoke(inspect, check=False)
        return done.text.strip().removeprefix("sha256:") if done.returncode == 0 else None

    def inspect(self, image: str) -> Platform:
        """Return the platform that an image's config states."""
        if self.program.kind == "podman":
            done = self._command(["image", "inspect", image], doing=f"inspect `{image}`")
            found = parse_json(done.text)[0]
            return Platform(found["Os"], found["Architecture"], found.get("Variant") or "")
        done = self._command(["inspect", "--type", "image", image], doing=f"inspect `{image}`")
        found = parse_json(done.text)["OCIv1"]
        return Platform(found["os"], found["architecture"], found.get("variant") or "")

    def images(self) -> dict[str, str]:
        """Return the names in the storage, each with its image's ID; unnamed images appear under their ID."""
        form = "--json" if self.program.kind == "buildah" else "--format=json"
        done = self._command(["images", "--no-trunc", form], doing="list the images")
        result = {}
        for entry in parse_json(done.text or "[]") or []:
            image = str(entry.get("id") or entry.get("Id")).removeprefix("sha256:")
            for name in entry.get("names") or entry.get("Names") or [image]:
                result[name] = image
        return dict(sorted(result.items()))

    def remove_image(self, name: str) -> None:
        """Remove a name, and the image with its last name. Idempotent."""
        self.storage.invoke(["rmi", *(["--force"] if self.program.kind == "podman" else []), name], check=False)

    def mount_copy(self, image: str, path_in_image: str, destination: Path) -> None:
        """Copy a file or tree out of an image to a path that must not exist. Links stay links.

        Raises:
            BuildError: the image has no such path, or the path points outside it.
        """
        files.ensure_directory(destination.parent)
        with self._working_container(image) as container:
            if self.program.kind == "podman":
                argv = [*self.storage.command(), "cp", f"{container}:{path_in_image}", str(destination)]
            else:
                argv = [*self.storage.command(), "unshare", "--mount", f"AIRFERRY_MOUNT={container}", "--"]
                argv += [sys.executable, "-I", inside.__file__, "copy", path_in_image, str(destination)]
            try:
                self.storage.invoke_raw(argv, timeout_s=EXPORT_S)
            except process.ProcessFailed as failure:
                raise engine_error(failure, doing=f"copy `{path_in_image}` out of `{image}`") from failure

    # --- build and run -----------------------------------------------------------------------------------------------

    def build(
        self,
        source: ContainerBuild,
        *,
        platform: Platform,
        tag: str,
        epoch_s: int,
        timeout_s: float = IMAGE_BUILD_TIMEOUT_S,
        emit: Emit = silent,
    ) -> str:
        """Build a Containerfile for one platform, as one layer on its base, and return the image's ID.

        Nothing is pulled. Times in the image are `epoch_s`. Progress counts the Containerfile's steps.

        Raises:
            BuildError: an instruction failed; its last lines are in the message.
            HostError: the host is at fault: disk, emulator, namespaces.
        """
        what = f"`{tag}` for `{platform}` from `{source.containerfile}`"

        def on_line(line: str) -> None:
            if step := _STEP.match(line):
                emit(Progress(f"build {tag} {platform}", int(step[1]), int(step[2]), unit="steps"))

        streams = process.Streams(on_line=on_line, merge_output=True)
        with files.scratch_directory(self.storage.temporary) as folder:
            identity = folder / "id"
            shown = (source.containerfile, source.context)
            around = StartConditions(network=source.network, apart=self.storage.isolation.apart, shown=shown)
            argv: list[str | Path] = ["build", "--pull=never", "--layers=false", "--force-rm", "--format", "oci"]
            argv += ["--timestamp", str(epoch_s), "--platform", str(platform), *self.storage.isolation.arguments]
            argv += ["--identity-label=false", *(["--http-proxy=false"] if not source.network else [])]
            argv += ["--file", files.resolved(source.containerfile), "--tag", tag, "--iidfile", identity]
            for key, value in sorted(source.arguments.items()):
                argv += ["--build-arg", f"{key}={value}"]
            argv.append(files.resolved(source.context))
            try:
                self.storage.invoke(argv, around=around, timeout_s=timeout_s, streams=streams)
            except process.ProcessFailed as failure:
                self.storage.forget_isolation()
                raise build_error(failure, what=what) from failure
            return identity.read_text(encoding="utf-8").strip().removeprefix("sha256:")

    def run(
        self,
        image: str,
        argv: Sequence[str],
        *,
        platform: Platform,
        options: ContainerOptions = DEFAULT_OPTIONS,
        streams: process.Streams = process.QUIET,
        timeout_s: float = IMAGE_BUILD_TIMEOUT_S,
        check: bool = True,
    ) -> process.Completed:
        """Run a command in a container of an image and return what it left. No container stays behind.

        The image's entry point is not used. With `check` false, its exit code is the caller's to judge.

        Raises:
            BuildError: with `check`, the command failed; always, its time ran out.
        """
        common: list[str] = []
        for volume in options.volumes:
            common += ["--volume", str(volume)]
        for key, value in sorted(options.env.items()):
            common += ["--env", f"{key}={value}"]
        common += ["--user", options.user] if options.user else []
        common += ["--hostname", OWN_NAME, "--no-hosts"] if options.watch else []
        names = ["--dns", NAME_SERVER, "--dns-search", "."] if options.watch else []
        name = _container_name()
        try:
            if self.program.kind == "podman":
                self.storage.choose_runtime()
                common += ["--workdir", options.workdir] if options.workdir else []
                common += [
                    "--network",
                    "host" if options.network or options.watch else "none",
                    *(["--interactive"] if streams.stdin is not None else []),
                ]
                create = [
                    # whatever `containers.conf` says
                    "--pid=private",
                    "--ipc=private",
                    "--uts=private",
                    "--rm",
                    "--stop-timeout",
                    "0",
                    "--pull",
                    "never",
                    "--platform",
                    str(platform),
                    "--name",
                    name,
                    "--entrypoint",
                    "",
                    *names,
                ]
                arguments = ["run", *create, *common, image, *argv]
                # the runtime gives the container its own network and processes
                around = StartConditions(watch=options.watch) if options.watch else AS_ON_HOST
            else:
                common += ["--workingdir", options.workdir] if options.workdir else []
                self._command(
                    ["from", "--pull=never", "--platform", str(platform), *names, "--name", name, image], doing="start"
                )
                isolation = self.storage.isolation
                arguments = ["run", *isolation.arguments, *common, name, "--", *argv]
                shown = tuple(volume.host for volume in options.volumes)
                around = StartConditions(options.network, options.watch, isolation.apart, shown)
            done = self.storage.invoke(arguments, around=around, timeout_s=timeout_s, streams=streams, check=check)
            if done.returncode != 0:
                self.storage.forget_isolation()
            return done
        except process.ProcessFailed as failure:
            self.storage.forget_isolation()
            raise engine_error(failure, doing=f"run `{argv[0]}` in `{image}` for `{platform}`") from failure
        finally:
            self._remove_container(name)

    # --- images out --------------------------------------------------------------------------------------------------

    def export(self, image: str, *, base_diff_ids: Sequence[str], into: Path) -> ExportedImage:
        """Write the layers that an image has beyond its base to a private folder, and return them with the config.

        Layers of the base are neither read, compressed nor written: the engine finds empty files under their diff_ids
        where it would put them, and takes them for the blobs. `into` must be empty or absent, and used by no other
        process. A layer whose diff_id the base has as well is not listed.

        Raises:
            BuildError: the image does not begin with the base's layers, or the export fails.
        """
        if into.exists() and any(into.iterdir()):
            raise BuildError(f"cannot export `{image}`: `{into}` is not empty", hint="remove that folder first")
        blobs = files.ensure_directory(into / "blobs" / "sha256")
        (into / "oci-layout").write_bytes(_LAYOUT_FILE)
        # otherwise the engine reads, compresses and writes the base's layers too, only to be thrown away here: minutes
        # for each image on a base of 20 GB
        for diff_id in base_diff_ids:
            (blobs / digest_hex(parse_digest(diff_id))).touch()
        arguments = ["push", "-q", "--format", "oci", *self._fast_compression()]
        try:
            self.storage.invoke([*arguments, image, "oci:.:image"], timeout_s=EXPORT_S, cwd=into)
        except process.ProcessFailed as failure:
            raise engine_error(failure, doing=f"export `{image}`") from failure
        return _read_export(into, base_diff_ids=base_diff_ids, what=f"export of `{image}`")

    def _fast_compression(self) -> list[str]:
        # The layer is compressed again by the caller, so as little time as possible goes into this passage.
        if self.program.kind == "buildah":
            return ["--compression-format", "gzip", "--compression-level", "1"]
        return ["--compression-format", "gzip"]

    # --- the rest ----------------------------------------------------------------------------------------------------

    def remove_tree(self, path: Path) -> None:
        """Remove a folder that containers wrote to, files of subordinate users included. Idempotent."""
        self.storage.remove_tree(path)

    def _command(self, arguments: Sequence[str], *, doing: str) -> process.Completed:
        try:
            return self.storage.invoke(arguments)
        except process.ProcessFailed as failure:
            raise engine_error(failure, doing=doing) from failure

    @contextmanager
    def _working_container(self, image: str) -> Iterator[str]:
        name = _container_name()
        create = ["from", "--pull=never", "--name", name, image]
        if self.program.kind == "podman":
            create = ["create", "--pull", "never", "--name", name, image, "true"]
        try:
            self._command(create, doing=f"open `{image}`")
            yield name
        finally:
            self._remove_container(name)

    def _remove_container(self, name: str) -> None:
        force = ["--force"] if self.program.kind == "podman" else []
        self.storage.invoke(["rm", *force, name], check=False)


@contextmanager
def open_engine(
    state: Path, *, engine: EngineChoice = "auto", may_share_processes: bool = False, emit: Emit = silent
) -> Iterator[Engine]:
    """Find an engine, clear what killed runs left in its state folder, and hand it out. Processes share the folder.

    `may_share_processes` is for hosts that do not let an ordinary user separate the processes of containers.

    Raises:
        HostError: there is no engine, or the folder cannot be used.
    """
    program = find_engine(engine)
    runs = files.ensure_directory(state) / "runs"
    with locks.own_folder(runs) as own:
        storage = Storage(program, state, own=own, emit=emit, may_share_processes=may_share_processes)
        storage.prepare()
        locks.clear_abandoned(runs, remove=storage.remove_run)
        with locks.sharing(state / "lock", clear=storage.reset_leftovers, emit=emit):
            try:
                yield Engine(storage, emit=emit)
            finally:
                storage.remove_leftovers()


def base_tag(manifest_digest: str, name: str = "base") -> str:
    """Return the name that an imported base has in the storage: it depends on the manifest's digest alone."""
    return f"localhost/{name}:{digest_hex(manifest_digest)[:12]}"


def _container_name() -> str:
    return f"airferry-{random_names.token_hex(8)}"


def _platform_arguments(platform: Platform | None) -> list[str]:
    return ["--platform", str(platform)] if platform else []


def _read_export(layout: Path, *, base_diff_ids: Sequence[str], what: str) -> ExportedImage:
    blobs = layout / "blobs" / "sha256"
    index = parse_index(files.read_bounded(layout / "index.json", limit_bytes=MAX_MANIFEST_BYTES), what=what)
    digest = index.manifests[0].digest
    manifest = parse_manifest(files.read_bounded(blobs / digest_hex(digest), limit_bytes=MAX_MANIFEST_BYTES), what=what)
    config_bytes = files.read_bounded(blobs / digest_hex(manifest.config.digest), limit_bytes=MAX_IMAGE_CONFIG_BYTES)
    diff_ids = parse_image_config(config_bytes, what=what).rootfs.diff_ids
    if list(base_diff_ids) != diff_ids[: len(base_diff_ids)] or len(diff_ids) != len(manifest.layers):
        raise BuildError(
            f"{what}: the image does not start with the layers of its base",
            hint="another base was imported under the same name; clear the engine's state folder",
            expected=list(base_diff_ids),
            observed=diff_ids,
        )
    known = set(base_diff_ids)
    layers = {
        diff_id: ExportedLayer(diff_id, blobs / digest_hex(descriptor.digest), descriptor)
        for diff_id, descriptor in zip(diff_ids, manifest.layers, strict=True)
        if diff_id not in known
    }
    return ExportedImage(config_bytes, tuple(layers.values()))
