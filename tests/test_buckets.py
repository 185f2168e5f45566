"""gs:// against a real server: what is refused, what is tried again, what is never half there."""

import bucket_server
import pytest
from bucket_server import Rule
from etils import epath

from bert_jax import buckets, cli, files
from bert_jax.cli import UserError


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    """Seconds that were to be waited between tries, in place of waiting."""
    taken = []

    async def sleep(seconds: float) -> None:
        taken.append(seconds)

    monkeypatch.setattr("bert_jax.buckets.asyncio.sleep", sleep)
    return taken


@pytest.mark.parametrize("method", ["exists", "read_text", "stat", "iterdir", "glob", "write_text"])
def test_a_bucket_that_does_not_exist(bucket, method):
    path = epath.Path("gs://no-bucket/a")
    arguments = {"glob": ["*"], "write_text": ["x"]}.get(method, [])
    with pytest.raises(UserError, match="there is no bucket gs://no-bucket: correct the name"):
        list(getattr(path, method)(*arguments) or ())


@pytest.mark.parametrize(("status", "method"), [(403, "GET"), (401, "GET"), (403, "POST")])
def test_a_bucket_that_may_not_be_used(bucket, status, method):
    path = epath.Path("gs://bucket/a")
    action = path.exists if method == "GET" else lambda: path.write_text("x")
    with (
        bucket.breaking(Rule(f"^{method}", status)),
        pytest.raises(UserError, match=r"no permission for bucket gs://bucket \(as the test asks"),
    ):
        action()


def test_an_object_that_does_not_exist(bucket):
    assert not epath.Path("gs://bucket/a").exists()
    with pytest.raises(FileNotFoundError):
        epath.Path("gs://bucket/a").read_text()


@pytest.mark.parametrize("fault", [429, 500, 502, 503, 504, "cut"])
def test_faults_that_pass_are_sat_out(bucket, waits, fault):
    path = epath.Path("gs://bucket/a")
    path.write_bytes(b"x" * 1000)
    with bucket.breaking(Rule("^GET .*alt=media", fault, times=5)):
        assert path.read_bytes() == b"x" * 1000
    assert [int(seconds) for seconds in waits] == [1, 2, 4, 8, 16]


def test_an_outage_is_waited_for_six_minutes(bucket, waits, caplog):
    with (
        bucket.breaking(Rule("", 503)),
        pytest.raises(OSError, match="has failed for 6 minutes: HttpError"),
    ):
        epath.Path("gs://bucket/a").write_text("x")
    assert len(waits) == buckets.TRIES - 1 and 340 < sum(waits) < 380
    (warning,) = [r.message for r in caplog.records if r.name == "root"]
    assert warning.startswith("gs://bucket fails (") and warning.endswith("trying for 6 minutes")


def test_an_object_that_another_host_has_made_longer(bucket):
    path = epath.Path("gs://bucket/a/b")
    path.write_text("old")
    assert list(path.parent.iterdir()) == [path]
    bucket.write("a/b", b"new and longer")
    bucket.write("a/c", b"")
    assert path.read_text() == "new and longer"
    assert len(list(path.parent.iterdir())) == 2


def test_small_files_are_written_at_once(bucket):
    for content in ("one", "two"):
        files.write_whole("gs://bucket/a", content)
    assert bucket.read("a") == b"two" and bucket.names() == ["a"]
    # A renamed copy would be 15 requests.
    assert {"copy", "delete"}.isdisjoint(request.kind for request in bucket.requests)


def test_nothing_half_written_looks_whole(bucket, waits):
    path = epath.Path("gs://bucket/a")
    path.write_text("old")
    with bucket.breaking(Rule("^(POST|PUT)", 503)), pytest.raises(OSError, match="has failed"):
        path.write_bytes(b"x" * 20_000_000)
    assert bucket.names() == ["a"] and bucket.read("a") == b"old"


FLAGS = ("--input=gs://one/a.txt", "--output=gs://two/b")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (UserError("there is no bucket gs://two: x"), "there is no bucket gs://two: x (FLAG)"),
        (UserError("give another --output: gs://two"), "give another --output: gs://two"),
        (
            ValueError("PERMISSION_DENIED: Error reading two/b/c: HTTP response code: 403"),
            "gs://two: no permission (ValueError: PERMISSION_DENIED: Error reading two/b/c: HTTP "
            "response code: 403) (FLAG)",
        ),
        (FileNotFoundError("two/b/c"), "gs://two: nothing there (FileNotFoundError: two/b/c)"
         " (FLAG)"),
    ],
)  # fmt: skip
def test_a_refusal_is_one_line_with_the_flag(error, message):
    expected = f"error: {message}".replace("FLAG", "--output=gs://two/b")
    assert cli.outcome(error, FLAGS) == (expected, cli.EXIT_USER_ERROR)
    wrapped = RuntimeError("the save failed")
    wrapped.__cause__ = error
    assert cli.outcome(wrapped, FLAGS) == (expected, cli.EXIT_USER_ERROR)


def test_other_errors_stay_what_they_are():
    said, code = cli.outcome(RuntimeError("404 elsewhere"), FLAGS)
    assert code == 1 and said == "RuntimeError: 404 elsewhere"


def test_the_server_counts_requests(bucket):
    epath.Path("gs://bucket/a").write_text("x")
    epath.Path("gs://bucket/a").read_text()
    list(epath.Path("gs://bucket").iterdir())
    epath.Path("gs://bucket/a").unlink()
    kinds = {request.kind for request in bucket.requests}
    assert kinds == {"write", "stat", "list", "read", "delete"}
    assert bucket_server.missing() == ""
