"""The cluster checklist, run and not read: every step's config resolved as a job would see it, and looked at.

Reads the catalogue, `env.toml`, storage as far as this host sees it, and asks the registry. Changes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from airferry.assets.staged import bundle_assets
from airferry.bundle.receipt import Receipt, ReceiptAsset
from airferry.bundle.verify import Bundle
from airferry.config import Executor, SiteProfile
from airferry.defaults import COMMANDS_FILE
from airferry.errors import ConfigurationError, UsageError
from airferry.events import Emit, silent
from airferry.jobs.catalogue import CatalogueSource
from airferry.jobs.configs import image_of, targets_of, with_default
from airferry.jobs.context import AMBIENT, CODE_FOLDER, JOB_FOLDER, StepContext, consumed_and_produced, mounts_of
from airferry.jobs.findings import Finding, merge_findings
from airferry.jobs.images import ask_images
from airferry.jobs.known_assets import staged_values
from airferry.jobs.profile import FoundSite, read_site
from airferry.jobs.report import CheckReport, joined
from airferry.jobs.rules.assets import StagedAssets, asset_findings
from airferry.jobs.rules.code import code_findings
from airferry.jobs.rules.config import blend_findings, config_findings
from airferry.jobs.rules.paths import path_findings
from airferry.jobs.rules.site import RegistryImage, images_of_job, site_findings
from airferry.jobs.rules.whole import split_answers, stale_overlays
from airferry.jobs.submission import OFFLINE_VARIABLES, environment_of, submit_of
from airferry.oci.reference import parse_reference
from airferry.plan.catalogue import Catalogue, StepFiles, choose_target, find_step
from airferry.plan.code.fetches import StartFetches
from airferry.plan.env_profiles import EnvFile, EnvProfile, read_env_file
from airferry.plan.models import Target
from airferry.plan.planner import split_choices
from airferry.plan.step_config import StepConfigReader
from airferry.plan.step_values import StepValues, read_step_values, resolve_texts
from airferry.registry.client import ClientOptions


@dataclass(frozen=True)
class Checked:
    """What a check is about. Without a receipt, images are not compared; `targets` empty means all there are.

    `overlays` is a folder that `airferry overlays` wrote; a target that has an overlay there is checked with it.
    `written` is one that is only named in fixes.
    """

    catalogue: Catalogue
    site: SiteProfile
    receipt: Receipt | None = None
    targets: tuple[str, ...] = ()
    executor: str | None = None
    overlays: Path | None = None
    written: Path | None = None
    receipt_path: Path | None = None
    env_file: EnvFile | None = None
    profile: str | None = None
    submission: Mapping[str, str] = field(default_factory=lambda: dict(os.environ), repr=False)
    assets: StagedAssets = field(default_factory=StagedAssets)

    @property
    def known_assets(self) -> tuple[ReceiptAsset, ...]:
        """The assets that the bundle, or else the receipt, declares."""
        if self.assets.entries or self.receipt is None:
            return tuple(
                ReceiptAsset(name=entry.name, kind=entry.kind, steps=entry.steps, target=entry.target)
                for entry in self.assets.entries
            )
        return self.receipt.assets


@dataclass(frozen=True, slots=True)
class JobSelection:
    """Which jobs of a site are meant, and how they are submitted. `targets` empty means all there are.

    Without `executor` it is each of the site profile that there is what to check for. `overlays` is a folder that
    `overlays` wrote, to be used; `env_file` is the `env.toml` that jobs use, and `profile` the one in it.
    """

    site: Path | FoundSite | None = None
    targets: tuple[str, ...] = ()
    executor: str | None = None
    profile: str | None = None
    env_file: Path | None = None
    overlays: Path | None = None


def check(
    jobs: JobSelection | None = None,
    *,
    receipt: Path | None = None,
    catalogue: CatalogueSource | None = None,
    hash_assets: bool = False,
    ask_registry: bool = True,
    options: ClientOptions | None = None,
    emit: Emit = silent,
) -> CheckReport:
    """Look at each step as a job on the far side would see it, and return what was found. Changes nothing.

    Without a receipt, images are not compared. With a bundle in `catalogue`, the assets that it names are compared with
    what is staged: names and sizes, and with `hash_assets` every byte. Findings are in the report, not raised.

    Raises:
        UsageError: a target, executor or profile does not exist, or there is no catalogue.
        ConfigurationError: site or `env.toml` are wrong; the line is named.
        IntegrityError: it is not a receipt, or one of another bundle than the catalogue's `root` or `bundle`; the
            bundle is damaged.
    """
    jobs = jobs or JobSelection()
    catalogue = catalogue or CatalogueSource()
    known = read_site(jobs.site)
    if hash_assets and catalogue.bundle is None:
        raise UsageError(
            "`--hash-assets` requires a bundle, which lists the assets", hint="give the bundle with `--bundle DIR`"
        )
    if jobs.overlays is not None and not jobs.overlays.is_dir():
        raise UsageError(f"`{jobs.overlays}` is not a folder of overlays", hint="`airferry overlays` writes one")
    places = catalogue.find(receipt, options=options, emit=emit)
    if receipt is not None:
        known = read_site(jobs.site, receipt=places.receipt, emit=emit)
    with places.open(beside=jobs.overlays) as opened:
        checked = Checked(
            catalogue=opened,
            site=known,
            receipt=places.receipt,
            receipt_path=receipt,
            targets=split_choices(jobs.targets),
            executor=jobs.executor,
            overlays=jobs.overlays,
            written=_written_next_to(receipt, known),
            env_file=read_env_file(jobs.env_file) if jobs.env_file is not None else None,
            profile=jobs.profile,
            assets=_assets(places.bundle, content=hash_assets, emit=emit),
        )
        quick = options or ClientOptions(connect_timeout_s=10.0, read_timeout_s=20.0)
        quick = places.receipt.reached_with(quick) if places.receipt is not None else quick
        chosen, left_out = _executors(checked)
        reader, fetches, reports = StepConfigReader(), StartFetches(opened), []
        whole: list[Finding] = []
        for executor in chosen:
            asking = replace(checked, executor=executor.kind)
            # a registry that did not answer for one executor is not waited for again
            silent = {finding.key for finding in whole}
            names = images_to_ask(asking) if ask_registry else []
            names = [name for name in names if parse_reference(name).registry not in silent]
            images = (
                ask_images(names, executor=executor, platform=known.platform, options=quick, emit=emit) if names else {}
            )
            images, unanswered = split_answers(images)
            whole += unanswered
            reports.append(run_check(asking, images, reader=reader, fetches=fetches))
        asked = ask_registry and places.receipt is not None
        return joined(reports, whole=whole, left_out=left_out, images_asked=asked)


def _executors(checked: Checked) -> tuple[list[Executor], dict[str, str]]:
    """Return the executors to check for, and why others of the site are not.

    Raises:
        UsageError: the site does not have the one that is asked for.
    """
    if checked.executor is not None:
        return [executor_of(checked)], {}
    every = list(checked.site.executors)
    left_out: dict[str, str] = {}
    folder = checked.overlays
    if folder is not None and any((folder / executor.kind).is_dir() for executor in every):
        reason = f"`{folder}` has no overlays for it"
        left_out = {executor.kind: reason for executor in every if not (folder / executor.kind).is_dir()}
    if checked.env_file is not None or checked.profile is not None:
        profiles = {executor.kind: checked.site.profile_of(executor) for executor in every}
        usable = {kind for kind, known in profiles.items() if known and checked.profile in (None, known[0])}
        usable -= left_out.keys()
        first = next(kind for kind in profiles if kind not in left_out)
        reason = "the site profile names another profile of `env.toml` for it, or none"
        left_out |= {kind: reason for kind in profiles if kind not in (usable or {first}) and kind not in left_out}
    return [executor for executor in every if executor.kind not in left_out], left_out


def _written_next_to(receipt: Path | None, site: SiteProfile) -> Path | None:
    """Return the folder of a receipt where `load --jobs` wrote overlays next to it, else None."""
    kinds = [executor.kind for executor in site.executors]
    if receipt is None or not any((receipt.parent / kind / COMMANDS_FILE).is_file() for kind in kinds):
        return None
    return receipt.parent


def _assets(bundle: Bundle | None, *, content: bool, emit: Emit) -> StagedAssets:
    if bundle is None:
        return StagedAssets()
    entries = bundle.manifest.persistent_assets.assets
    return StagedAssets(entries, bundle_assets(bundle), content=content, emit=emit)


def images_to_ask(checked: Checked) -> list[str]:
    """Return what the jobs of the steps to check may name as their image."""
    if checked.receipt is None:
        return []
    executor = executor_of(checked)
    images = [image_of(checked.receipt, target) for target in chosen_targets(checked)]
    return sorted({name for image in images for name in images_of_job(executor, image)})


def run_check(
    checked: Checked,
    images: Mapping[str, RegistryImage],
    *,
    reader: StepConfigReader | None = None,
    fetches: StartFetches | None = None,
) -> CheckReport:
    """Look at every step for one executor and return what was found. A step that cannot be read is a finding, not the
    end. `reader` and `fetches` keep what was read for another executor.

    Raises:
        UsageError: a target, executor or profile that is asked for does not exist.
        ConfigurationError: `env.toml` contradicts itself.
    """
    executor = executor_of(checked)
    profile = _profile(checked, executor)
    reader = reader or StepConfigReader()
    fetches = fetches or StartFetches(checked.catalogue)
    names: list[str] = []
    whole: list[Finding] = []
    findings: list[Finding] = []
    for target in chosen_targets(checked):
        names.append(target.spec)
        try:
            context = _context(checked, target, executor=executor, profile=profile, reader=reader)
        except ConfigurationError as error:
            place = error.path or "", error.line or 1
            findings.append(Finding(target.spec, "value", "block", *place, "", "", error.message, error.hint))
            continue
        if context is None:
            continue
        found = [*config_findings(context), *blend_findings(context), *path_findings(context)]
        found += asset_findings(context, checked.assets)
        found += [*code_findings(context, fetches), *site_findings(context, images)]
        if stale := _stale(checked, context):
            whole.append(stale)
            # the image that this receipt's load has would be the wrong thing to type
            found = [finding for finding in found if not (finding.kind == "image" and finding.by_overlays)]
        findings += merge_findings(found)
    findings = [*dict.fromkeys(whole), *findings]
    return CheckReport(
        tuple(names),
        tuple(replace(finding, executors=(executor.kind,)) for finding in findings),
        overlays_help=checked.overlays is None,
        executors=(executor.kind,),
    )


def _stale(checked: Checked, context: StepContext) -> Finding | None:
    if checked.receipt is None or checked.overlays is None:
        return None
    return stale_overlays(context.values, checked.receipt, receipt_path=checked.receipt_path, overlays=checked.overlays)


def chosen_targets(checked: Checked) -> list[Target]:
    """Return what to check: as asked for, else the receipt's targets, else each config of the catalogue.

    Raises:
        UsageError: the receipt does not have a target.
    """
    catalogue = checked.catalogue
    if checked.receipt is not None:
        known = targets_of(checked.receipt)
        wanted = [choose_target(catalogue, text, folder=Path.cwd()) for text in checked.targets]
        for target in wanted:
            if target.spec not in checked.receipt.steps and target.step_id not in checked.receipt.steps:
                names = ", ".join(f"`{item.spec}`" for item in known) or "none"
                raise UsageError(f"the receipt has no `{target.spec}`", hint=f"it has {names}")
        return [with_default(catalogue, target) for target in wanted or known]
    if checked.targets:
        found = (choose_target(catalogue, text, folder=Path.cwd()) for text in checked.targets)
        return [with_default(catalogue, target) for target in found]
    every: list[Target] = []
    for step_id in catalogue.step_ids():
        configs = catalogue.config_names(step_id)
        every += [Target(step_id, name) for name in configs] or [Target(step_id)]
    return every


def executor_of(checked: Checked) -> Executor:
    """Return the executor to check for: as asked for, else the first of the site.

    Raises:
        UsageError: the site does not have it.
    """
    executors = checked.site.executors
    if checked.executor is None:
        return executors[0]
    for executor in executors:
        if executor.kind == checked.executor:
            return executor
    names = ", ".join(f"`{executor.kind}`" for executor in executors)
    raise UsageError(f"the site has no executor `{checked.executor}`", hint=f"it has {names}")


def _profile(checked: Checked, executor: Executor) -> EnvProfile | None:
    if checked.env_file is None:
        if checked.profile is not None:
            raise UsageError(f"profile `{checked.profile}` is not in any file", hint="name the file with `--env-file`")
        return None
    known = checked.site.profile_of(executor)
    name = checked.profile or (known[0] if known else None)
    if name is None:
        names = ", ".join(f"`{item}`" for item in checked.env_file.profiles)
        raise UsageError(
            f"no profile of `{checked.env_file.path}` selected", hint=f"`--profile NAME`; there are {names}"
        )
    return checked.env_file.profile(name)


def _context(
    checked: Checked, target: Target, *, executor: Executor, profile: EnvProfile | None, reader: StepConfigReader
) -> StepContext | None:
    """Return a step as the rules see it, or None if it has no config to look at."""
    found = find_step(checked.catalogue, target, travelled=True)
    path = _config_path(checked, found, executor)
    if path is None:
        return None
    consumes, produces = consumed_and_produced(found.step_toml)
    ambient = {name: checked.submission.get(name, name.lower()) for name in AMBIENT}
    ambient |= {"PWD": CODE_FOLDER, "NEMO_RUN_DIR": JOB_FOLDER}
    variables = _profile_variables(checked, executor, profile)
    first = read_step_values(reader, path, environment={**ambient, **variables})
    own = {value.last: str(value.value) for value in first.below("run", "env", "env_vars") if value.value is not None}
    environment = {**ambient, **own, **variables}
    values = read_step_values(reader, path, environment=environment) if own else first
    known = checked.site.profile_of(executor)
    staged = staged_values(values, consumes, checked.known_assets, step=target.spec)
    return StepContext(
        name=target.spec,
        files=found,
        values=values,
        consumes=consumes,
        produces=produces,
        site=checked.site,
        executor=executor,
        mounts=mounts_of(checked.site, _written_mounts(values, profile, checked.submission)),
        environment=environment,
        provided=frozenset(known[1].provides if known else ()),
        profile=profile,
        image=image_of(checked.receipt, target) if checked.receipt is not None else None,
        code_root=checked.catalogue.root,
        staged={item.value.key: item.target for item in staged.found},
        overlays=checked.overlays or checked.written,
        submit=submit_of(checked.site, checked.receipt) if checked.receipt is not None else None,
    )


def _config_path(checked: Checked, found: StepFiles, executor: Executor) -> Path | None:
    if checked.overlays is not None and found.target.config is not None and found.target.path is None:
        overlay = checked.overlays / executor.kind / found.target.step_id / f"{found.target.config}.yaml"
        if overlay.is_file():
            return overlay
    return found.config_path


def _profile_variables(checked: Checked, executor: Executor, profile: EnvProfile | None) -> dict[str, str]:
    """Return the variables that jobs get from outside the config: of `env.toml` if it is there, else of the site."""
    if profile is None:
        return environment_of(checked.site, executor)
    written = profile.values.get("env_vars")
    variables = resolve_texts(written if isinstance(written, dict) else {}, environment=checked.submission)
    known = checked.site.profile_of(executor)
    return {**OFFLINE_VARIABLES, **(known[1].env if known else {}), **variables}


def _written_mounts(values: StepValues, profile: EnvProfile | None, submission: Mapping[str, str]) -> Sequence[object]:
    """Return the mounts of a config and of the profile, the latter resolved as they are where jobs are submitted."""
    mounts: list[object] = [value.value for value in values.below("run", "env", "mounts")]
    if profile is None:
        return mounts
    for name in ("mounts", "pvcs"):
        written = profile.values.get(name)
        for mount in written if isinstance(written, list) else ():
            table = mount if isinstance(mount, dict) else {"": mount}
            resolved = resolve_texts(table, environment=submission)
            mounts.append(resolved if isinstance(mount, dict) else resolved[""])
    mounts.append(profile.values.get("lustre_mount"))
    return mounts
