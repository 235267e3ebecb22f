"""Servers that several tests start: PostgreSQL from this machine's own binaries, and moto's S3 server."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import START_S, free_port

PASSWORD = "s3cret-of-the-reader"


@dataclass
class Postgres:
    """A running server, with the database `shop` and the role `reader`, who needs a password."""

    port: int

    def url(self, user: str = "owner", database: str = "shop") -> str:
        return f"postgresql+psycopg://{user}@127.0.0.1:{self.port}/{database}"

    def execute(self, sql: Any, database: str = "shop") -> list[tuple]:
        import psycopg

        address = f"host=127.0.0.1 port={self.port} user=owner dbname={database}"
        with psycopg.connect(address, autocommit=True) as connection:
            cursor = connection.execute(sql)
            return cursor.fetchall() if cursor.description else []


def binaries() -> Path:
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    folder = next((folder for folder in folders if (folder / "postgres").exists()), None)
    if folder is None:
        pytest.skip("PostgreSQL's initdb and postgres are not on this machine")
    return folder


def server_user() -> dict[str, Any]:
    """PostgreSQL refuses to run as root: then it runs as somebody else."""
    if os.geteuid() != 0:
        return {}
    names = {entry.pw_name: entry for entry in pwd.getpwall()}
    entry = names.get("postgres") or names["nobody"]
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


@contextmanager
def running_postgres() -> Iterator[Postgres]:
    """A PostgreSQL server of this machine's binaries; the test is skipped where there are none."""
    pytest.importorskip("psycopg")
    bin_folder, user = binaries(), server_user()
    folder = Path(tempfile.mkdtemp(prefix="hone-postgres-"))
    if user:
        os.chown(folder, user["user"], user["group"])
    data, log = folder / "data", folder / "log"
    process = None
    try:
        subprocess.run(
            [bin_folder / "initdb", "-D", data, "-U", "owner", "--auth=trust", "-E", "UTF8", "--no-sync", "--locale=C"],
            check=True, capture_output=True, cwd=folder, **user,
        )  # fmt: skip
        rules = "host all reader 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\n"
        (data / "pg_hba.conf").write_text(rules)
        postgres = Postgres(free_port())
        with log.open("wb") as output:
            process = subprocess.Popen(
                [bin_folder / "postgres", "-D", data, "-h", "127.0.0.1", "-p", str(postgres.port), "-k", folder,
                 "-c", "fsync=off"],
                stdout=output, stderr=output, cwd=folder, **user,
            )  # fmt: skip
        wait_until_ready(postgres, log)
        postgres.execute("CREATE DATABASE shop", "postgres")
        postgres.execute(f"CREATE ROLE reader LOGIN PASSWORD '{PASSWORD}'")
        yield postgres
    finally:
        if process is not None:
            process.send_signal(signal.SIGINT)  # a fast shutdown, open connections or not
            process.wait(30)
        shutil.rmtree(folder)


def wait_until_ready(postgres: Postgres, log: Path) -> None:
    import psycopg

    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        try:
            postgres.execute("SELECT 1", "postgres")
        except psycopg.OperationalError:
            time.sleep(0.1)
        else:
            return
    pytest.fail(f"PostgreSQL did not answer within {START_S} s:\n{log.read_text()[-2000:]}")


@contextmanager
def running_s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of an S3 server that s3:// means in this test and in what it starts, with the bucket `data`."""
    pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server")
    import boto3
    import s3fs

    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    endpoint = f"http://{host}:{port}"
    # All of moto's servers in a process share their buckets.
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/moto-api/reset", method="POST"), timeout=10).close()
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "stand-in")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "stand-in")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs.S3FileSystem.clear_instance_cache()
    client = boto3.client("s3")
    client.create_bucket(Bucket="data")
    try:
        yield client
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        server.stop()
