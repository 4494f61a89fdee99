"""The far side, from a loaded bundle to a job that runs: the site profile, overlays, mirrors and the checklist."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from airferry.api.catalogue import Whereabouts
from airferry.api.defaults import SITE_FILE
from airferry.assets.staged import bundle_assets
from airferry.bundle.receipt import Receipt, read_receipt
from airferry.bundle.verify import Bundle, open_bundle
from airferry.config import SiteProfile, load_config, load_site, parse_site
from airferry.config.site import EXECUTOR_KINDS
from airferry.errors import ConfigurationError, IntegrityError, UsageError
from airferry.events import Emit, Warned, silent
from airferry.host import files
from airferry.jobs.check import Checked, CheckReport, executor_of, images_to_ask, run_check
from airferry.jobs.configs import COMMANDS_FILE, CONFIGS_MARK, PLAIN, OverlaySet, make_overlays
from airferry.jobs.images import ask_images
from airferry.jobs.mirrors import MirrorFiles, make_mirrors
from airferry.jobs.rules.assets import StagedAssets
from airferry.oci.digest import parse_digest
from airferry.plan.env_profiles import read_env_file
from airferry.registry.client import ClientOptions

PLAN_CONFIG = "airgap.yaml"
HEADER = "# The far side, described for `airferry overlays`, `mirrors` and `check`.\n"


def init_site(path: Path, document: Mapping[str, Any], *, force: bool = False) -> SiteProfile:
    """Write a site profile, once it was checked as any other, and return it. Atomic.

    Raises:
        UsageError: the file is there, and `force` is not given.
        ConfigurationError: the profile would be wrong.
    """
    if path.exists() and not force:
        raise UsageError(f"`{path}` already exists", hint="`--force` replaces it")
    written = {key: value for key, value in document.items() if value not in (None, "", [], {}, ())}
    text = HEADER + yaml.safe_dump(written, sort_keys=False, width=120)
    site = parse_site(text.encode(), path)
    files.write_text(path, text)
    return site


def site_trouble(key: str, value: Any) -> str | None:
    """Return what is wrong with a value of one key of a site profile by itself, None if nothing is."""
    try:
        parse_site(yaml.safe_dump({key: value}).encode(), Path("answer"))
    except ConfigurationError as error:
        return error.message.partition(f"`{key}")[2].partition(": ")[2] or error.message
    return None


def read_site(path: Path | None) -> SiteProfile:
    """Return the site profile of a file; without one, of `site.yaml` or `airgap.yaml` here; else an empty one.

    Raises:
        ConfigurationError: the file is wrong.
    """
    if path is not None:
        return load_site(path)
    if Path(SITE_FILE).is_file():
        return load_site(Path(SITE_FILE))
    if Path(PLAN_CONFIG).is_file():
        return load_config(Path(PLAN_CONFIG)).site or SiteProfile()
    return SiteProfile()


def overlays(
    receipt: Path,
    *,
    out: Path,
    source: Path | None = None,
    bundle: Path | None = None,
    site: Path | None = None,
    steps: str | None = None,
    root: str | None = None,
    options: ClientOptions | None = None,
    emit: Emit = silent,
) -> OverlaySet:
    """Write a config overlay for each step of a loaded bundle, `env.toml` fragments, and the commands that submit.

    The catalogue is `source`, else what the bundle or, by the receipt, the registry holds; that is extracted into
    `catalogue` below `out`, where the overlays find it. What an earlier run wrote into the folder and this one does not
    is removed.

    Raises:
        UsageError: there is no catalogue, or the folder for it holds something else.
        ConfigurationError: receipt, catalogue and site do not fit together.
        IntegrityError: it is not a receipt, or one of another bundle than `root` or `bundle` names.
        RegistryError: the registry does not hand over the catalogue.
    """
    opened = open_bundle(bundle, root=root) if bundle is not None else None
    known = _receipt(receipt, opened.root if opened else root)
    places = Whereabouts(source, steps, opened, known, options, emit)
    return write_overlays(known, places, site=read_site(site), out=out)


def write_overlays(receipt: Receipt, places: Whereabouts, *, site: SiteProfile, out: Path) -> OverlaySet:
    """Write what `overlays` writes, from a receipt, a catalogue and a site that are at hand."""
    out = files.without_dots(out)
    made = make_overlays(receipt, places.kept_in(out), site=site, out=out.absolute())
    _write(out, made.files)
    # without a profile, nothing says that the executors of an earlier run are gone
    _remove_stale(out, made.files, kinds=EXECUTOR_KINDS if site.executors else (PLAIN.kind,))
    return made


def mirrors(
    receipt: Path,
    *,
    out: Path,
    plain_http: bool | None = None,
    ca_file: str | None = None,
    root: str | None = None,
    emit: Emit = silent,
) -> MirrorFiles:
    """Write mirror configurations for the base images that a loaded bundle carried.

    Raises:
        ConfigurationError: it carried none.
        IntegrityError: it is not a receipt, or one of another bundle than `root` names.
    """
    made = make_mirrors(_receipt(receipt, root), plain_http=plain_http, ca_file=ca_file)
    _write(out, made.files)
    for note in made.notes:
        emit(Warned(note))
    return made


def check(
    *,
    source: Path | None = None,
    receipt: Path | None = None,
    site: Path | None = None,
    targets: Sequence[str] = (),
    executor: str | None = None,
    overlays: Path | None = None,
    env_file: Path | None = None,
    profile: str | None = None,
    steps: str | None = None,
    root: str | None = None,
    bundle: Path | None = None,
    hash_assets: bool = False,
    ask_registry: bool = True,
    options: ClientOptions | None = None,
    emit: Emit = silent,
) -> CheckReport:
    """Look at each step as a job on the far side would see it, and return what was found. Changes nothing.

    The catalogue is `source`, else what the bundle or, by the receipt, the registry holds. With the bundle, the assets
    that it names are compared with what is staged: names and sizes, and with `hash_assets` every byte.

    Raises:
        UsageError: a target, executor or profile does not exist, or there is no catalogue.
        ConfigurationError: site or `env.toml` are wrong; the line is named.
        IntegrityError: it is not a receipt, or one of another bundle than `root` or `bundle` names; the bundle is
            damaged.
    """
    known = read_site(site)
    if hash_assets and bundle is None:
        raise UsageError(
            "`--hash-assets` requires a bundle, which lists the assets", hint="give the bundle with `--bundle DIR`"
        )
    if overlays is not None and not overlays.is_dir():
        raise UsageError(f"`{overlays}` is not a folder of overlays", hint="`airferry overlays` writes one")
    opened = open_bundle(bundle, root=root) if bundle is not None else None
    held = _receipt(receipt, opened.root if opened else root) if receipt is not None else None
    with Whereabouts(source, steps, opened, held, options, emit).open(beside=overlays) as catalogue:
        checked = Checked(
            catalogue=catalogue,
            site=known,
            receipt=held,
            targets=tuple(part.strip() for text in targets for part in text.split(",") if part.strip()),
            executor=executor,
            overlays=overlays,
            written=_written_next_to(receipt, known),
            env_file=read_env_file(env_file) if env_file is not None else None,
            profile=profile,
            assets=_assets(opened, content=hash_assets, emit=emit),
        )
        images = {}
        if ask_registry and (names := images_to_ask(checked)):
            quick = options or ClientOptions(connect_timeout_s=10.0, read_timeout_s=20.0)
            asking = executor_of(checked)
            images = ask_images(names, executor=asking, platform=known.platform, options=quick, emit=emit)
        return run_check(checked, images)


def _written_next_to(receipt: Path | None, site: SiteProfile) -> Path | None:
    """Return the folder of a receipt where `load --jobs` wrote overlays next to it, else None."""
    kinds = [executor.kind for executor in site.executors or (PLAIN,)]
    if receipt is None or not any((receipt.parent / kind / COMMANDS_FILE).is_file() for kind in kinds):
        return None
    return receipt.parent


def _assets(bundle: Bundle | None, *, content: bool, emit: Emit) -> StagedAssets:
    if bundle is None:
        return StagedAssets()
    entries = bundle.manifest.persistent_assets.assets
    return StagedAssets(entries, bundle_assets(bundle), content=content, emit=emit)


def _receipt(path: Path, root: str | None) -> Receipt:
    receipt = read_receipt(path)
    if root is not None and receipt.bundle_root != parse_digest(root):
        raise IntegrityError(
            f"receipt `{path}` is of bundle `{receipt.bundle_root}`, expected `{root}`",
            hint="use the receipt that loading this bundle wrote",
            root=receipt.bundle_root,
            expected=root,
        )
    return receipt


def _remove_stale(out: Path, written: Mapping[str, str], *, kinds: Iterable[str]) -> None:
    """Remove what an earlier run wrote for steps and executors that are no more; files of others stay.

    Nothing but the executors' own folders is looked at, as `out` may be a folder with much else in it.
    """
    mark = CONFIGS_MARK.encode()
    for path in sorted(path for kind in kinds for path in (out / kind).rglob("*")):
        if path.is_symlink() or not path.is_file() or str(path.relative_to(out)) in written:
            continue
        with path.open("rb") as stream:
            stale = stream.read(len(mark)) == mark
        if stale:
            path.unlink()


def _write(out: Path, texts: Mapping[str, str]) -> None:
    for name, text in texts.items():
        files.write_text(out / name, text)
