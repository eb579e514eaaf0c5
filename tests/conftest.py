"""What every test may ask for: a private home, the two kinds of stores, real photographs."""

from __future__ import annotations

import os
import re
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import certifi
import hypothesis
import pytest
from filelock import FileLock

from tests import servers
from tests.forkserver import ForkServer
from tests.helpers import write_small_onnx
from tests.servers import MariaDB, Milvus, SharedMilvus

if TYPE_CHECKING:
    from imgsearch.config import Settings

pytest.register_assert_rewrite("tests.guarantees.common")
# Other work on the machine makes any example slow.
hypothesis.settings.register_profile("imgsearch", deadline=None)
hypothesis.settings.load_profile("imgsearch")

ROOT = Path(__file__).resolve().parent.parent


def missing(part: str, how: str) -> None:
    """Skip the test, or fail it where ``IMGSEARCH_TEST_STRICT`` is set."""
    text = f"{part} is missing: {how}"
    if os.environ.get("IMGSEARCH_TEST_STRICT"):
        pytest.fail(text + " (IMGSEARCH_TEST_STRICT is set)", pytrace=False)
    pytest.skip(text)


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch, tmp_path):
    """Tests neither read the user's settings nor write to the user's home."""
    from imgsearch.config import Settings

    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("IMGSEARCH_HOME", str(tmp_path / "home"))
    # OpenVINO takes seconds to convert a network; tests of it ask for it by name.
    monkeypatch.setenv("IMGSEARCH_BACKEND", "eager")


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real photographs and weights for development; never part of the project."""
    folder = ROOT.parent / "shared"
    if not (folder / "voc").is_dir():
        pytest.skip("../shared is missing: real photographs lie beside a development checkout only")
    return folder


# ---------------------------------------------------------------- a browser


@pytest.fixture(scope="session")
def chromium():
    program = servers.find_chromium()
    if not program:
        missing("Chromium", "apt-get install chromium-headless-shell, or chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        yield browser
        browser.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Keep what a browser showed when its test failed: a busy machine seldom repeats it."""
    report = yield
    browser = getattr(item, "funcargs", {}).get("chromium")
    if report.failed and browser is not None:
        pages = [page for context in browser.contexts for page in context.pages]
        for number, page in enumerate(pages):
            file = ROOT / "output" / "failed" / f"{item.name}-{report.when}-{number}.png"
            page.screenshot(path=file)
            said = page.locator(".imgsearch-status").all_inner_texts()
            report.sections.append(("browser", f"{page.url} said {said} and looked like {file}"))
    return report


@pytest.fixture(scope="session")
def axe():
    """Return what axe finds wrong with the panels of a page or a part of it, of any impact."""
    from axe_playwright_python.sync_playwright import Axe

    def find(page, part: str = ".imgsearch", *, colors_only: bool = False) -> list:
        options = {"resultTypes": ["violations"]} | (
            {"runOnly": ["cat.color"]} if colors_only else {}
        )
        found = Axe().run(page, context=part, options=options).response["violations"]
        return [(rule["id"], [node["html"][:200] for node in rule["nodes"]]) for rule in found]

    return find


# ---------------------------------------------------------------- a run of several processes


def pytest_configure(config):
    """Make a folder that all processes of this run share; sockets in it need a short name."""
    if not hasattr(config, "workerinput"):
        os.environ[servers.RUN] = tempfile.mkdtemp(prefix="imgsearch-")
        # Each connection of PyMySQL and each client of httpx reads all certificate authorities,
        # which takes as long as most tests do. No test needs any, and httpx wants one.
        one = Path(os.environ[servers.RUN], "authority.pem")
        one.write_text(
            re.search("-----BEGIN.*?END CERTIFICATE-----\n", certifi.contents(), re.S)[0]
        )
        os.environ |= {"SSL_CERT_FILE": os.fspath(one), "SSL_CERT_DIR": os.environ[servers.RUN]}
        # With more test processes than processors, the threads of torch and OpenBLAS spend most of
        # their time in waiting for each other.
        os.environ["OMP_NUM_THREADS"] = "1"


def pytest_unconfigure(config):
    if not hasattr(config, "workerinput"):
        servers.end_shared(Path(os.environ.pop(servers.RUN)))


# Files that take longest, and so are begun first.
_LONGEST = [
    "tests/notebooks/test_evaluation.py",
    "tests/browser/test_first_hour.py",
    "tests/browser/test_lab.py",
    "tests/server/test_page.py",
    "tests/server/test___main__.py",
    "tests/server/test_schemas.py",
    "tests/stores/test_embedded.py",
    "tests/guarantees/test_servers.py",
    "tests/guarantees/test_strangers.py",
    "tests/encoders/test_backends.py",
    "tests/guarantees/test_memory.py",
    "tests/notebooks/test_admin.py",
    "tests/test_maintenance.py",
    "tests/test_real_photographs.py",
    "tests/test_ingestion.py",
    "tests/encoders/test_loading.py",
    "tests/encoders/test_onnx.py",
    "tests/datasets/test_voc.py",
    "tests/guarantees/test_endurance.py",
    "tests/guarantees/test_kill.py",
    "tests/guarantees/test_files.py",
    "tests/stores/test_embedded_server.py",
    "tests/guarantees/test_damage.py",
    "tests/stores/test_metadata.py",
]


def _unit(nodeid: str) -> str:
    """What one worker runs in one go: a file, but tests on servers and long ones by themselves.

    Tests on servers mostly wait, and what they share is shared by all workers.
    """
    alone = "[servers" in nodeid or "soak]" in nodeid
    return nodeid if alone else nodeid.partition("::")[0]


def pytest_collection_modifyitems(config, items):
    """Begin with the longest files, and spread the tests on servers between the others."""
    if not hasattr(config, "workerinput"):
        return
    rank = {file: number for number, file in enumerate(_LONGEST)}
    units: dict[str, list] = {}
    for item in sorted(items, key=lambda i: rank.get(i.nodeid.partition("::")[0], len(rank))):
        units.setdefault(_unit(item.nodeid), []).append(item)
    kinds = [[u for u in units if ("::" in u) is alone] for alone in (False, True)]
    place = {u: i / len(kind) for kind in kinds for i, u in enumerate(kind)}
    items[:] = [item for unit in sorted(units, key=place.get) for item in units[unit]]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _unit(nodeid)

    config.option.loadscopereorder = False
    return Scheduling(config, log)


# ---------------------------------------------------------------- figures of `make soak`


def pytest_terminal_summary(terminalreporter):
    """Print what the long tests found, one line each, and write it to output/soak.md."""
    lines = []
    for outcome in ("passed", "failed", "error"):
        for report in terminalreporter.getreports(outcome):
            test = isinstance(report, pytest.TestReport)  # and no error of collection
            if test and "soak" in report.keywords and (report.when == "call" or outcome == "error"):
                figures = dict(report.user_properties).get("figures", "")
                name = report.nodeid.removeprefix("tests/guarantees/")
                lines.append(f"| `{name}` | {outcome} | {report.duration:.0f} s | {figures} |")
    if lines:
        table = ["| test | outcome | time | figures |", "| --- | --- | --- | --- |", *sorted(lines)]
        (ROOT / "output").mkdir(exist_ok=True)
        (ROOT / "output" / "soak.md").write_text("\n".join(table) + "\n", encoding="utf-8")
        terminalreporter.section("figures, also in output/soak.md")
        terminalreporter.write("\n".join(table) + "\n")


# ---------------------------------------------------------------- real servers


@pytest.fixture(scope="session")
def mariadb() -> MariaDB:
    """A MariaDB server of this test run, with a user that may do everything; it stays up."""
    _require_mariadb()

    def start(folder: Path):
        server = MariaDB.create(folder)
        return server.process, {"folder": str(folder), "port": server.port}

    facts = servers.shared("mariadb", start)
    server = MariaDB(Path(facts["folder"]), facts["port"])
    assert server.connect()
    return server


@pytest.fixture(scope="session")
def own_mariadb() -> Iterator[MariaDB]:
    """A MariaDB server that a test may stop, freeze and kill."""
    _require_mariadb()
    folder = Path(tempfile.mkdtemp(dir=os.environ[servers.RUN]))
    server = MariaDB.create(folder)
    yield server
    server.kill()


def _require_mariadb() -> None:
    if not servers.find_program("mariadbd", "mysqld"):
        missing("mariadbd", "apt-get install mariadb-server, or conda install mariadb")


@pytest.fixture(scope="session")
def milvus_server() -> SharedMilvus:
    """A real Milvus server of this test run; it stays up."""
    venv = _milvus_venv()

    def start(folder: Path):
        server = Milvus(folder, venv)
        return server.process, {"uri": server.uri}

    return SharedMilvus(servers.shared("milvus", start)["uri"])


@pytest.fixture
def milvus_client(milvus_server):
    """A client of the Milvus server, like that of another program."""
    from pymilvus import MilvusClient

    client = MilvusClient(uri=milvus_server.uri, dedicated=True)
    yield client
    client.close()


@pytest.fixture(scope="session")
def own_milvus(tmp_path_factory) -> Iterator[Milvus]:
    """A real Milvus server that a test may freeze and kill."""
    server = Milvus(tmp_path_factory.mktemp("milvus"), _milvus_venv())
    yield server
    server.kill()


def _milvus_venv() -> Path:
    venv = Path(os.environ.get("IMGSEARCH_TEST_MILVUS_VENV") or ROOT / ".venv-milvus")
    if not (venv / "bin" / "python").exists():
        missing("a Milvus server", "make .venv-milvus/stamp")
    try:
        Path("/tmp/milvus").mkdir(exist_ok=True)  # whatever it is told, it writes there too
        tempfile.TemporaryFile(dir="/tmp/milvus").close()
    except OSError as error:
        missing("a folder that Milvus can write", f"/tmp/milvus: {error.strerror}")
    return venv


@pytest.fixture(scope="session")
def forkserver(tmp_path_factory) -> ForkServer:
    """Start processes that have imported torch and the stores."""
    return ForkServer(tmp_path_factory.mktemp("forks"))


@pytest.fixture(scope="session")
def kernels(forkserver, tmp_path_factory) -> Iterator[None]:
    """Have Jupyter's kernels start as forks, which spares each of them its imports."""
    folder = tmp_path_factory.mktemp("jupyter")
    forkserver.install_kernel(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", os.fspath(folder), prepend=os.pathsep)
        yield


@pytest.fixture(scope="session")
def shared_home(tmp_path_factory) -> Iterator[Path]:
    """An embedded home of this test session; its server stays until the end."""
    from imgsearch.stores import embedded

    home = tmp_path_factory.mktemp("embedded")
    with embedded.lease(home, grace=0.2):
        yield home


def settings_of(kind: str, request, tmp_path) -> Iterator[Settings]:
    """Settings of one kind of stores: Milvus Lite and SQLite, or Milvus and MariaDB.

    The metadata are the test's own; vectors are in a store that lives as long as the
    session, so take the name of a collection from the fixture ``collection``.
    """
    from imgsearch.config import load_settings

    if kind == "embedded":
        home = request.getfixturevalue("shared_home")
        yield load_settings(
            imgsearch_home=home, database_url=f"sqlite:///{tmp_path / 'metadata.sqlite'}"
        )
        return
    milvus = request.getfixturevalue("milvus_server")
    database = request.getfixturevalue("mariadb")
    name = f"t_{uuid.uuid4().hex[:12]}"
    collection = request.getfixturevalue("collection")
    yield load_settings(
        imgsearch_home=tmp_path / "home", milvus_uri=milvus.uri, **database.settings(name)
    )
    database.sql(f"DROP DATABASE IF EXISTS {name}")
    milvus.drop(collection)  # a loaded collection costs the server work


@pytest.fixture(params=["embedded", "servers"])
def stores(request, tmp_path) -> Iterator[Settings]:
    """Settings of both kinds of stores in turn: the same test must hold on each."""
    yield from settings_of(request.param, request, tmp_path)


# For tests that say little about stores: servers are in the long form only.
EMBEDDED_FIRST = pytest.mark.parametrize(
    "stores", ["embedded", pytest.param("servers", marks=pytest.mark.soak)], indirect=True
)


@pytest.fixture
def collection() -> str:
    """A name that no other test uses."""
    return f"t_{uuid.uuid4().hex[:12]}"


@pytest.fixture(scope="session")
def encoder():
    """A small encoder that another process can load by its name, the path of an ONNX file."""
    from imgsearch.encoders import load_encoder

    file = Path(os.environ[servers.RUN]) / "encoder" / "small.onnx"
    with FileLock(f"{file.parent}.lock"):
        if not file.exists():
            file.parent.mkdir()
            write_small_onnx(file)
    return load_encoder(file)
