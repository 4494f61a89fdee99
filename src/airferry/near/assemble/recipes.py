"""What a plan's images are made of, as tasks: one image for one platform, by an engine or, where that can be, without.

A task knows all that its image depends on, for the journal, and how to lay its parts out. It builds nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airferry.bundle.manifest import Addition
from airferry.errors import BuildError
from airferry.host import clock, files
from airferry.host.installation import shipped
from airferry.near.assemble import context
from airferry.near.assemble.checkouts import add_checkout
from airferry.near.assemble.container import ASSEMBLY_VERSION
from airferry.near.assemble.direct import OFFLINE_ENVIRONMENT, DirectRecipe, Known, RecipeScratch, direct_inputs
from airferry.near.assemble.launcher import add_environment, add_repository, launcher_environment, launcher_obstacle
from airferry.near.assemble.tree import LayerTree
from airferry.near.assemble.wheels import BaseFiles, InstallScheme, WheelInstaller, install_scheme, installed_names
from airferry.near.assemble.writer import base_annotations
from airferry.near.bases.fetch import BaseImage
from airferry.near.failures import naming, overlay_place, requirement_places
from airferry.near.git import driver
from airferry.near.git.addresses import redact
from airferry.near.session import Session
from airferry.near.wheels.compile import may_compile
from airferry.near.wheels.pack import Wheel, read_wheel
from airferry.near.wheels.pip import WheelTarget, wheel_target
from airferry.near.wheels.project import project_wheel
from airferry.near.wheels.store import Pin
from airferry.oci.platform import Platform
from airferry.plan.code.modules import parents
from airferry.plan.lockfile import LockedPlatform, Lockfile
from airferry.plan.models import LAUNCHER, GroupPlan, LauncherPlan, Plan
from airferry.wording import some_of

TITLE_LABEL = "org.opencontainers.image.title"
MAX_SAID = 20

Checkout = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class ContainerWork:
    """How an engine builds an image. `lay_out` fills the build context; `network` is for RUN instructions, `env` goes
    into the config.

    `inputs` is what the image depends on, worked out when an engine is considered at all.
    """

    containerfile: Path
    arguments: Mapping[str, str]
    network: bool
    inputs: Callable[[], Mapping[str, Any]]
    lay_out: Callable[[Path], None]
    env: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class DirectWork:
    """How an image is assembled without an engine."""

    recipe: DirectRecipe
    inputs: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Task:
    """One image for one platform. `direct` is None where the plan itself rules it out, and `against` says why.

    `room_bytes` tells how much disk the making of it takes at a time, as far as that is known.
    """

    name: str
    platform: Platform
    base: BaseImage
    labels: Mapping[str, str]
    additions: tuple[Addition, ...]
    python: str | None
    container: ContainerWork
    direct: DirectWork | None
    against: str = ""
    room_bytes: Callable[[], int] = lambda: 0

    @property
    def action(self) -> str:
        """The name of the action in the journal."""
        return f"image {self.name} {self.platform}"

    @property
    def title(self) -> str:
        """The name of the task for operators."""
        return f"{self.name} {self.platform}"


@dataclass(frozen=True, slots=True)
class TaskMaker:
    """Makes the tasks of a locked plan. The engine's version is asked for only where an engine is considered."""

    session: Session
    plan: Plan
    lock: Lockfile
    bases: Mapping[str, Mapping[Platform, BaseImage]]

    def execution(self, group: GroupPlan, platform: Platform) -> Task:
        """Return the task of a group's image."""
        locked = self.lock.groups[group.name].platforms[str(platform)]
        base = self.bases[group.base_image.key][platform]
        checkouts = tuple(
            (overlay.url, self.lock.overlays[overlay.key].commit, overlay.target) for overlay in group.overlays
        )
        labels = _labels(group.tag, base)
        parts = {
            "labels": labels,
            "wheels": [[item.file, item.sha256] for item in locked.additions],
            "overlays": [list(checkout) for checkout in checkouts],
            **_env_input(group),
        }
        against = self._against(group.containerfile)
        direct = None
        if not against:
            recipe = self._execution_recipe(group, platform, locked, base, checkouts, labels)
            direct = DirectWork(recipe, self._inputs(base, {**direct_inputs(), **_described(locked), **parts}))
        return Task(
            name=group.name,
            platform=platform,
            base=base,
            labels=labels,
            additions=_additions(locked),
            python=locked.python,
            container=self._execution_container(group, locked, base, checkouts, parts),
            direct=direct,
            against=against,
            room_bytes=lambda: self._room_bytes(locked, checkouts),
        )

    def launcher(self, launcher: LauncherPlan, platform: Platform) -> Task:
        """Return the task of the launcher's image."""
        assert self.lock.launcher is not None
        locked = self.lock.launcher.platforms[str(platform)]
        base = self.bases[launcher.base_image.key][platform]
        against = self._against(launcher.containerfile)
        return Task(
            name=LAUNCHER,
            platform=platform,
            base=base,
            labels=_labels(launcher.tag, base),
            additions=_additions(locked),
            python=locked.python,
            container=self._launcher_container(launcher, locked, base),
            direct=None if against else self._launcher_direct(launcher, platform, locked, base),
            against=against,
            room_bytes=lambda: self._room_bytes(locked, ()),
        )

    # --- by an engine ------------------------------------------------------------------------------------------------

    def _execution_container(
        self,
        group: GroupPlan,
        locked: LockedPlatform,
        base: BaseImage,
        checkouts: tuple[Checkout, ...],
        parts: Mapping[str, Any],
    ) -> ContainerWork:
        containerfile = group.containerfile or shipped("containerfiles") / "Containerfile.execution"
        arguments = {"PYTHON_BIN": locked.python, "BASE_USER": base.user}

        def lay_out(folder: Path) -> None:
            self._fetch_overlays(group, checkouts)
            context.execution_context(
                folder,
                additions=self._fetch(group, locked, base),
                pip=self._pip(locked.python_version) if locked.additions else None,
                checkouts=checkouts,
                cache=self.session.cache,
                emit=self.session.emit,
            )

        def inputs() -> dict[str, Any]:
            own = self._container_inputs(containerfile, "install-execution.sh")
            pip = self._pip(locked.python_version).name if locked.additions else None
            return self._inputs(base, {**parts, **own, "arguments": arguments, "pip": pip})

        return ContainerWork(containerfile, arguments, group.containerfile is not None, inputs, lay_out, group.env)

    def _launcher_container(self, launcher: LauncherPlan, locked: LockedPlatform, base: BaseImage) -> ContainerWork:
        containerfile = launcher.containerfile or shipped("containerfiles") / "Containerfile.launcher"
        root = self.plan.source_root
        excluded = [self.plan.output_dir]
        arguments = {
            "PYTHON_BIN": locked.python,
            "BASE_USER": base.user,
            "WORKSPACE": self.plan.workspace,
            "CODE_FOLDER": self.plan.code_folder,
            "PACKAGES": " ".join(launcher.packages),
        }

        def lay_out(folder: Path) -> None:
            files.ensure_directory(folder)
            wheels = [*self._fetch(launcher, locked, base), *self._project_wheels(folder.parent)]
            pip = self._pip(locked.python_version)
            context.launcher_context(
                folder,
                source_root=root,
                excluded=excluded,
                additions=wheels,
                pip=pip,
                configs=context.plan_configs(self.plan, self.session.cache),
            )

        def inputs() -> dict[str, Any]:
            own = {
                **self._container_inputs(containerfile, "install-launcher.sh"),
                "arguments": arguments,
                "labels": _labels(launcher.tag, base),
                "wheels": [[item.file, item.sha256] for item in locked.additions],
                "pip": self._pip(locked.python_version).name,
                **_env_input(launcher),
                "source": self._source_digest(),
            }
            return self._inputs(base, own)

        return ContainerWork(containerfile, arguments, bool(launcher.packages), inputs, lay_out, launcher.env)

    def _container_inputs(self, containerfile: Path, script: str) -> dict[str, Any]:
        return {
            "builder": "engine",
            "assembly": ASSEMBLY_VERSION,
            "engine": self.session.engine_version(),
            "containerfile": "sha256:" + files.file_sha256(containerfile),
            "script": "sha256:" + files.file_sha256(shipped("containerfiles") / script),
        }

    # --- directly ----------------------------------------------------------------------------------------------------

    def _against(self, containerfile: Path | None) -> str:
        if self.plan.config.builder == "buildah":
            return "the plan says `builder: buildah`"
        return f"it has its own Containerfile, `{containerfile.name}`" if containerfile is not None else ""

    def _execution_recipe(
        self,
        group: GroupPlan,
        platform: Platform,
        locked: LockedPlatform,
        base: BaseImage,
        checkouts: tuple[Checkout, ...],
        labels: Mapping[str, str],
    ) -> DirectRecipe:
        names = {item.name for item in locked.additions}

        def obstacle(known: Known) -> str | None:
            if known.python is None:
                return None
            there = installed_names(known.tree, install_scheme(known.python)) & names
            if there:
                return f"an older `{sorted(there)[0]}` of the base would have to be uninstalled first"
            return None

        def compose(tree: LayerTree, known: Known, room: RecipeScratch) -> None:
            if known.python is not None:
                _check_python(known, locked, base=group.base_image.key)
                wheels = self._fetch(group, locked, base)
                self._install(tree, known, room, locked, wheels, install_scheme(known.python))
            self._fetch_overlays(group, checkouts)
            for url, commit, target in checkouts:
                owner = f"{redact(url)}@{commit[:12]}"
                add_checkout(
                    tree,
                    self.session.checkouts.tree(url, commit),
                    target,
                    epoch_s=clock.source_date_epoch_s(),
                    owner=owner,
                )

        said = [f"{item.name} {item.version}" for item in locked.additions]
        said += [f"{redact(url)}@{commit[:12]} at {target}" for url, commit, target in checkouts]
        return DirectRecipe(
            name=group.name,
            platform=platform,
            labels=labels,
            says=f"airferry {group.name}: " + (some_of([*said, *_variables(group)], MAX_SAID) or "nothing to add"),
            adds=bool(said),
            python=locked.python,
            needs_python=bool(locked.additions),
            additions=_additions(locked),
            environment=OFFLINE_ENVIRONMENT,
            env=group.env,
            obstacle=obstacle,
            compose=compose,
        )

    def _launcher_direct(
        self, launcher: LauncherPlan, platform: Platform, locked: LockedPlatform, base: BaseImage
    ) -> DirectWork:
        root, excluded = self.plan.source_root, [self.plan.output_dir]
        labels = _labels(launcher.tag, base)
        workspace, code_folder = self.plan.workspace, self.plan.code_folder
        before = (base.config.config or {}).get("Env") or ()
        environment = launcher_environment(workspace, before, code_folder=code_folder)

        def compose(tree: LayerTree, known: Known, room: RecipeScratch) -> None:
            _check_python(known, locked, base=launcher.base_image.key)
            assert known.python is not None
            configs = context.plan_configs(self.plan, self.session.cache)
            add_repository(tree, context.carried(root, excluded, configs), workspace)
            scheme = add_environment(tree, known.python, f"{workspace}/.venv")
            wheels = [*self._fetch(launcher, locked, base), *self._project_wheels(room.folder)]
            self._install(tree, known, room, locked, wheels, scheme)

        recipe = DirectRecipe(
            name=LAUNCHER,
            platform=platform,
            labels=labels,
            says=f"airferry {LAUNCHER}: the catalogue at {workspace}, {len(locked.additions)} distributions",
            adds=True,
            python=locked.python,
            needs_python=True,
            additions=_additions(locked),
            environment=environment,
            env=launcher.env,
            settings={"WorkingDir": workspace, "Cmd": ["bash"]},
            obstacle=lambda known: launcher_obstacle(known, launcher.packages),
            compose=compose,
        )
        inputs = {
            **direct_inputs(),
            **_described(locked),
            "labels": labels,
            "environment": environment,
            **_env_input(launcher),
            "wheels": [[item.file, item.sha256] for item in locked.additions],
            "source": self._source_digest(),
            "project": code_folder,
        }
        return DirectWork(recipe, self._inputs(base, inputs))

    @staticmethod
    def _install(
        tree: LayerTree,
        known: Known,
        room: RecipeScratch,
        locked: LockedPlatform,
        wheels: Sequence[Wheel],
        scheme: InstallScheme,
    ) -> None:
        installer = WheelInstaller(tree, scheme, _target(locked), owned=BaseFiles(known.tree, scheme).owner)
        room.stack.enter_context(installer)
        sources = {item.name: item.git_source for item in locked.additions}
        for wheel in wheels:
            installer.add(wheel, git=sources.get(wheel.name))

    # --- both --------------------------------------------------------------------------------------------------------

    def _inputs(self, base: BaseImage, inputs: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "compression": self.session.knowledge.layers.compression.to_key(),
            "epoch_s": clock.source_date_epoch_s(),
            "base": base.manifest.digest,
            **inputs,
        }

    def _source_digest(self) -> str:
        configs = context.plan_configs(self.plan, self.session.cache)
        return context.tracked_digest(self.plan.source_root, excluded=[self.plan.output_dir], configs=configs)

    def _room_bytes(self, locked: LockedPlatform, checkouts: tuple[Checkout, ...]) -> int:
        """Return what an image holds on disk while it is made: its checkouts, and the layer that they go into."""
        sizes = [
            driver.checkout_bytes(url, commit, cache=self.session.cache) or 0 for url, commit, _target in checkouts
        ]
        return 2 * sum(sizes) + sum(self.session.wheels.size_bytes(item.file, item.sha256) for item in locked.additions)

    def _pip(self, python_version: str) -> Path:
        return self.session.wheels.pip_wheel(_release(python_version))

    def _fetch(self, image: GroupPlan | LauncherPlan, locked: LockedPlatform, base: BaseImage) -> list[Wheel]:
        named_at = requirement_places(self.plan, image)
        pins = [
            Pin(
                item.name,
                f"=={item.version}",
                git=item.git_source,
                filename=item.file,
                sha256=item.sha256,
                address=item.address,
                root=self.plan.lock_path.parent if self.plan.lock_path else self.plan.source_root,
                place=next(
                    (named_at[name] for module in item.modules for name in parents(module) if name in named_at), ""
                ),
            )
            for item in locked.additions
        ]
        compiler = may_compile(
            self.plan, self.session.engine, self.session.bases.store.path, base, locked.python, emit=self.session.emit
        )
        return self.session.wheels.fetch(pins, _target(locked), compiler=compiler) if pins else []

    def _fetch_overlays(self, group: GroupPlan, checkouts: tuple[Checkout, ...]) -> None:
        """Bring what the cache lacks of a group's overlays, so that a failure names the line that asks for it."""
        for overlay, (url, commit, _target) in zip(group.overlays, checkouts, strict=True):
            if not self.session.checkouts.has(url, commit):
                with naming(overlay_place(self.plan, overlay)):
                    driver.fetch_overlay(url, commit, cache=self.session.cache, emit=self.session.emit)

    def _project_wheels(self, into: Path) -> list[Wheel]:
        """Return the wheel that makes the catalogue's own project importable, if it declares one."""
        pyproject = self.plan.source_root / "pyproject.toml"
        if not pyproject.is_file():
            return []
        made = project_wheel(pyproject, source_path=self.plan.code_folder, version=None, into=into)
        return [read_wheel(made, sha256=files.file_sha256(made))] if made is not None else []


def _env_input(image: GroupPlan | LauncherPlan) -> dict[str, Any]:
    """Return an image's `env:` as inputs hold it; nothing where there is none, so that what was built before counts."""
    return {"env": dict(image.env)} if image.env else {}


def _variables(image: GroupPlan | LauncherPlan) -> list[str]:
    return [f"sets {', '.join(sorted(image.env))}"] if image.env else []


def _labels(tag: str, base: BaseImage) -> dict[str, str]:
    return {TITLE_LABEL: tag, **base_annotations(base)}


def _additions(locked: LockedPlatform) -> tuple[Addition, ...]:
    return tuple(
        Addition(name=item.name, version=item.version, file=item.file, sha256=item.sha256) for item in locked.additions
    )


def _described(locked: LockedPlatform) -> dict[str, Any]:
    return {
        "python": [locked.python, locked.python_version, locked.abi],
        "sources": [[item.name, item.source.model_dump()] for item in locked.additions if item.source],
        "environment": OFFLINE_ENVIRONMENT,
    }


def _check_python(known: Known, locked: LockedPlatform, *, base: str) -> None:
    """Refuse to install for another interpreter than the one that the lock was made for."""
    assert known.python is not None
    found = ".".join(str(part) for part in wheel_target(known.python).python_version)
    if (found, known.python.abi) != (locked.python_version, locked.abi):
        raise BuildError(
            f"`{locked.python}` of base `{base}` is Python {found} ({known.python.abi}), the lock file says "
            f"{locked.python_version} ({locked.abi})",
            hint="run `airferry lock --update`",
        )


def _target(locked: LockedPlatform) -> WheelTarget:
    major, minor, *_rest = (int(part) for part in locked.libc_version.split("."))
    return WheelTarget(_release(locked.python_version), locked.abi, locked.libc, (major, minor), locked.machine)


def _release(version: str) -> tuple[int, int, int]:
    major, minor, micro = [*(int(part) for part in version.split(".")), 0][:3]
    return major, minor, micro
