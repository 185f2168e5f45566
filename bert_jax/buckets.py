"""gs:// as all of this project reads and writes it: patient with the store, clear about the bucket.

`bert_jax.cli.use_patient_buckets` has fsspec, and so etils, take this class instead of gcsfs' own.
What TensorStore and array_record ask for themselves does not pass here.
"""

import asyncio
import logging
import random
import re
from typing import Any

import aiohttp
import google.auth.exceptions
import requests
from gcsfs import core, retry

from bert_jax.cli import UserError

# Waits of 1, 2, 4, 8, 16, 32, 32, … seconds between them: 6 minutes in all. gcsfs gives up after 6
# tries, half a minute: shorter than outages that a pod should sit out.
TRIES = 16
WARN_AT = 4  # tries without an answer
_FAILURES = (
    *(retry.HttpError, retry.ChecksumError, requests.exceptions.RequestException),
    *(google.auth.exceptions.GoogleAuthError, aiohttp.ClientError, TimeoutError),
)


class Buckets(core.GCSFileSystem):
    """gcsfs that tries again for minutes, and says which bucket cannot be used and why."""

    def __init__(self, *args: Any, **kwargs: Any):
        # With a cache of listings an object that another host has made longer is read to its old
        # length, and one that it has made is not seen.
        super().__init__(*args, **{"use_listings_cache": False} | kwargs)

    async def _request(self, method: str, path: str, *args: str, **kwargs: Any) -> Any:
        """Sends a request, again and again while the store fails.

          Raises:
            UserError: there is no such bucket, or it may not be used so.
            FileNotFoundError: there is no such object.
        OSError: the store has failed for minutes.
        """
        once = core.GCSFileSystem._request.__wrapped__  # without gcsfs' own tries
        for attempt in range(1, TRIES + 1):
            try:
                return await once(self, method, path, *args, **kwargs)
            except (OSError, *_FAILURES) as error:
                bucket = _bucket(path, args)
                if reason := _refusal(error, path):
                    raise UserError(f"{reason} gs://{bucket}{_details(error)}") from None
                transient = isinstance(error, TimeoutError) or retry.is_retriable(error)
                if not transient:
                    raise
                if attempt == TRIES:
                    raise OSError(f"gs://{bucket} has failed for 6 minutes: {error!r}") from error
                if attempt == WARN_AT:
                    logging.warning(f"gs://{bucket} fails ({error!r}): trying for 6 minutes")
                await asyncio.sleep(min(2 ** (attempt - 1), 32) + random.random())


def _bucket(path: str, args: tuple[str, ...]) -> str:
    """'b/{}/o', ('my-bucket',) -> 'my-bucket'; whole URLs have it in them."""
    match = re.search(r"(?:^|/)b/([^/]+)", path.format(*args) if args else path)
    return match[1] if match else ""


def _refusal(error: BaseException, path: str) -> str:
    """What is wrong with the bucket itself; "" if nothing is."""
    if isinstance(error, FileNotFoundError):
        # An object may be missing; what is asked of the bucket as a whole is always found.
        return "there is no bucket" if re.search(r"/o(\?.*)?$|^b/[^/]*$", path) else ""
    if isinstance(error, OSError) and str(error).startswith("Forbidden"):
        return "no permission for bucket"
    if isinstance(error, retry.HttpError) and error.code == 401:
        return "no permission for bucket"
    return ""


def _details(error: BaseException) -> str:
    """What the store says about it, in one line."""
    if isinstance(error, FileNotFoundError):
        return ": correct the name, or create it with gcloud storage buckets create"
    said = str(getattr(error, "message", "") or str(error).partition("\n")[2]).strip()
    return f" ({' '.join(said.split())})" if said else ""
