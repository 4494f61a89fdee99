"""Pulls by way of `registries.conf`: mirrors first, then the registry itself, and one place for all of an image.

A Source for what is read only. Uploads never come by here: they go where their reference says, over verified TLS.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import IO, TypeVar

from airferry.errors import AirferryError, ConfigurationError, RegistryError
from airferry.events import Emit, Notice, Warned
from airferry.oci.digest import is_digest
from airferry.oci.documents import Descriptor
from airferry.oci.ports import Source, Stored
from airferry.oci.reference import Reference
from airferry.registry.client import Clients
from airferry.registry.failures import TransientRegistryError
from airferry.registry.registries_conf import PullEndpoint, RegistriesConf, read_registries_conf
from airferry.registry.source import RegistrySource

# a mirror that is down must not hold up each pull for as long as the only source of an image may
FIRST_ATTEMPTS = 2
T = TypeVar("T")


class Pulls:
    """Opens images for reading. The configuration is read when it is first needed. Safe to use from threads."""

    def __init__(
        self, clients: Clients, *, emit: Emit, read: Callable[[], RegistriesConf] = read_registries_conf
    ) -> None:
        """Work with the clients of registries; nothing is read or sent yet."""
        self._clients = clients
        self._emit = emit
        self._read = read
        self._configuration: RegistriesConf | None = None
        self._said: set[str] = set()
        self._lock = threading.Lock()

    def source(self, reference: Reference) -> PullSource:
        """Return a source of an image; its tag and digest do not matter, as these are what the source is asked for."""
        return PullSource(reference, self)

    def endpoints(self, reference: Reference) -> list[PullEndpoint]:
        """Return where to ask for a reference, in order.

        Raises:
            SharedFileError: a file of the configuration is wrong.
        """
        with self._lock:
            if self._configuration is None:
                self._configuration = self._read()
            return self._configuration.endpoints(reference)

    def open(self, endpoint: PullEndpoint) -> RegistrySource:
        """Return the source of one endpoint, and say once for each host that it is insecure.

        Raises:
            ConfigurationError: the endpoint is blocked.
        """
        if endpoint.blocked is not None:
            raise ConfigurationError(
                f"{endpoint.blocked}: pulls from `{endpoint.reference.name}` are blocked",
                hint="use another image, or ask the administrator of this file to unblock it or to add a mirror",
            )
        host = endpoint.reference.registry
        if endpoint.insecure:
            self._say_once(
                f"insecure {host}",
                Warned(
                    f"{endpoint.place}: pulls from `{host}` accept any certificate, and plain HTTP",
                    hint="locked digests still detect changes in transit, but passwords can be read",
                ),
            )
        return RegistrySource(self._clients(host, insecure=endpoint.insecure), endpoint.reference.repository)

    def say(self, text: str) -> None:
        """Say something once."""
        self._say_once(text, Notice(text))

    def _say_once(self, key: str, event: Notice | Warned) -> None:
        with self._lock:
            fresh = key not in self._said
            self._said.add(key)
        if fresh:
            self._emit(event)


class PullSource(Source):
    """A Source over whichever endpoint has the image: chosen by `resolve` or `find`, then used for all of it."""

    reads_ranges = True

    def __init__(self, reference: Reference, pulls: Pulls) -> None:
        """Read an image's repository; nothing is sent yet."""
        self._reference = reference
        self._pulls = pulls
        self._chosen: RegistrySource | None = None

    def __str__(self) -> str:
        return str(self._chosen or self._reference.name)

    def resolve(self, reference: str) -> Descriptor:
        """Return the descriptor that a tag or digest stands for at the first endpoint that has it.

        Raises:
            ConfigurationError: the configuration is wrong, or forbids all that it names.
            RegistryError: no endpoint hands it over; each is named.
            IntegrityError: a registry gives other bytes than it says; no other is asked then.
        """
        found = self._first(reference, lambda source, tries: source.resolve(reference, attempts=tries))
        assert found is not None
        return found

    def find(self, reference: str) -> str | None:
        """Return the digest that a tag or digest stands for at the first endpoint that has it, or None.

        Raises:
            ConfigurationError: the configuration is wrong, or forbids all that it names.
            RegistryError: no endpoint has it, and not all of them say so.
            IntegrityError: a registry gives other bytes than it says; no other is asked then.
        """
        return self._first(reference, lambda source, tries: source.find(reference, attempts=tries))

    def read_manifest(self, descriptor: Descriptor) -> Stored:
        """Return a manifest's or index's original bytes, verified; see `RegistrySource`."""
        return self._source.read_manifest(descriptor)

    def open_blob(self, descriptor: Descriptor) -> AbstractContextManager[IO[bytes]]:
        """Open a blob as a verified stream; see `RegistrySource`."""
        return self._source.open_blob(descriptor)

    def open_blob_at(self, descriptor: Descriptor, offset: int) -> AbstractContextManager[IO[bytes]]:
        """Open a blob from an offset on, unverified; see `RegistrySource`."""
        return self._source.open_blob_at(descriptor, offset)

    def referrers(self, digest: str) -> list[Descriptor]:
        """Return the referrers of a digest; see `RegistrySource`."""
        return self._source.referrers(digest)

    def find_name(self, name: str) -> Descriptor | None:
        """Return the descriptor that a tag stands for where the image came from; None if there is none."""
        return self._source.find_name(name)

    def unknown_referrers(self) -> list[str]:
        """Return what kept `referrers` from seeing all there may be."""
        return self._source.unknown_referrers()

    def lacks(self, error: AirferryError) -> bool:
        """Tell whether an error means that the image's registry does not give what it was asked for."""
        return self._source.lacks(error)

    @property
    def _source(self) -> RegistrySource:
        assert self._chosen is not None, "`resolve` or `find` comes first"
        return self._chosen

    def _first(self, wanted: str, ask: Callable[[RegistrySource, int | None], T | None]) -> T | None:
        """Return what the first endpoint that has something answers, or None if all say that they have nothing."""
        by_digest = is_digest(wanted)
        reference = replace(self._reference, tag=None if by_digest else wanted, digest=wanted if by_digest else None)
        endpoints = self._pulls.endpoints(reference)
        if len(endpoints) == 1:
            return self._ask(endpoints[0], ask, None)
        failures: dict[PullEndpoint, AirferryError | None] = {}
        todo = endpoints
        tries: int | None = FIRST_ATTEMPTS
        while todo:
            for endpoint in todo:
                try:
                    found = self._ask(endpoint, ask, tries)
                except (RegistryError, ConfigurationError) as error:
                    failures[endpoint] = error
                    continue
                if found is not None:
                    self._say_chosen(reference, endpoint, failures)
                    return found
                failures[endpoint] = None
            # what may have been a passing fault gets its time once nothing else has helped
            todo = [one for one, error in failures.items() if isinstance(error, TransientRegistryError) and tries]
            tries = None
        errors = [error for error in failures.values() if error is not None]
        if not errors:
            return None
        raise _all_failed(reference, failures, errors) from errors[-1]

    def _ask(
        self, endpoint: PullEndpoint, ask: Callable[[RegistrySource, int | None], T | None], tries: int | None
    ) -> T | None:
        source = self._pulls.open(endpoint)
        found = ask(source, tries)
        if found is not None:
            self._chosen = source
        return found

    def _say_chosen(
        self, reference: Reference, chosen: PullEndpoint, failures: Mapping[PullEndpoint, AirferryError | None]
    ) -> None:
        for endpoint in (one for one in failures if one != chosen):
            self._pulls.say(f"`{endpoint.reference}` is skipped: {_reason(failures[endpoint])}")
        if chosen.reference.name != reference.name:
            self._pulls.say(f"`{reference}` is pulled from `{chosen.reference.name}` ({chosen.place})")


def _reason(error: AirferryError | None) -> str:
    return error.message if error is not None else "the registry has no such image"


def _all_failed(
    reference: Reference, failures: Mapping[PullEndpoint, AirferryError | None], errors: Sequence[AirferryError]
) -> AirferryError:
    """Return one error for all endpoints: of the configuration only if nothing but that stands in the way."""
    lines = [f"  {endpoint.place}: `{endpoint.reference}`: {_reason(error)}" for endpoint, error in failures.items()]
    kind: type[AirferryError] = RegistryError
    if all(isinstance(error, ConfigurationError) for error in failures.values()):
        kind = ConfigurationError
    elif any(isinstance(error, TransientRegistryError) for error in errors):
        kind = TransientRegistryError
    return kind(
        "\n".join([f"`{reference}` cannot be pulled from any of {len(failures)} sources:", *lines]),
        hint=next((error.hint for error in errors if error.hint), None),
        endpoints=[str(endpoint.reference) for endpoint in failures],
    )
