"""The report of a bundle that a security officer can sign, as HTML and as text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from airferry.bundle.verify import VerifyReport, open_bundle, verify_opened
from airferry.events import Emit, silent
from airferry.far.report.content import make_report
from airferry.far.report.html import render_html
from airferry.far.report.text import render_text
from airferry.host import files


@dataclass(frozen=True, slots=True)
class ReportOutcome:
    """A report in both forms, where they were written, and the verification that it tells of."""

    html: str
    text: str
    written: tuple[Path, ...]
    verified: VerifyReport


def report(
    bundle: Path,
    *,
    html: Path | None = None,
    text: Path | None = None,
    root: str | None = None,
    emit: Emit = silent,
) -> ReportOutcome:
    """Verify a bundle and say what it holds and why; written to files where these are given, atomically.

    The same bundle gives the same bytes. A damaged bundle gets its report too, findings included.

    Raises:
        UsageError: there is no bundle.
        HostError: a file cannot be written.
        IntegrityError: the root is another, or there is no telling what the bundle should hold.
    """
    for named in (html, text):
        if named is not None:
            files.output_file(named)
    opened = open_bundle(bundle, root=root)
    verified = verify_opened(opened, beside=bundle, emit=emit)
    made = make_report(opened, verified)
    page, plain = render_html(made), render_text(made)
    written = []
    for path, content in ((html, page), (text, plain)):
        if path is not None:
            files.write_text(files.output_file(path), content)
            written.append(path)
    return ReportOutcome(page, plain, tuple(written), verified)
