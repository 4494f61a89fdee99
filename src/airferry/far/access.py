"""Ask a registry for what a command needs of it, before anything is verified or sent: name, TLS, login, rights."""

from __future__ import annotations

from airferry.errors import RegistryError
from airferry.registry.auth import repository_scope
from airferry.registry.client import ClientOptions, RegistryClient
from airferry.registry.connections import Request
from airferry.registry.failures import Unauthorized
from airferry.registry.uploads import try_upload
from airferry.wording import shell_line


def login_command(host: str, *more: str, options: ClientOptions) -> str:
    """Return the command line that logs in to a registry as it is reached here, so that it works when pasted."""
    reach = ["--plain-http"] if options.plain_http else ["--tls"] if options.plain_http is False else []
    if options.ca_file is not None:
        reach += ["--ca-file", str(options.ca_file)]
    return shell_line(["airferry", "login", host, *more, *reach])


def _with_reach(hint: str | None, client: RegistryClient) -> str | None:
    command = login_command(client.registry, options=client.options)
    return hint and hint.replace(f"`airferry login {client.registry}`", f"`{command}`")


def expect_access(client: RegistryClient, repository: str, *, push: bool) -> None:
    """Check that a repository can be read, or with `push` written to, with the login at hand.

    A right to push shows only where something is written (a token may promise less or more than the registry gives), so
    an upload is begun and ended at once, as `crane` does it.

    Raises:
        RegistryError: it cannot be reached, or refuses.
    """
    what = f"{'push to' if push else 'read'} `{client.registry}/{repository}`"
    try:
        if push:
            try_upload(client, repository, what=what, expected=(202,))
        else:
            scopes = (repository_scope(repository, "pull"),)
            path = f"{repository}/tags/list?n=1"
            client.request(Request("GET", path, what, scopes=scopes), expected=(200, 404))
    except Unauthorized as error:
        # the most common answer, and the request's address tells nothing of it
        right = "may push to" if push else "may read"
        raise error.reworded(
            f"`{client.registry}` asks for a login that {right} `{repository}` (401); nothing was verified or sent",
            hint=_with_reach(error.hint, client),
        ) from error
    except RegistryError as error:
        raise error.reworded(f"{error.message}; nothing was verified or sent") from error
