"""Servers, a JVM and browsers: each is started, used and stopped, alone and watched, and does the same."""

from __future__ import annotations

import ctypes
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import COMMAND, spent

pytestmark = pytest.mark.slow

#: a browser's first start waits until its code has been analysed
PATIENCE = 300
_SUBREAPER = 36  # prctl(PR_SET_CHILD_SUBREAPER)
#: what `unmonitored` may say where a program is watched, but for parts of it
PARTS = ("code outside known functions", "no room for a jump", "calls the kernel at ", "code made at run time (JIT)")
#: what a program says of a crash, of its own or of a child's; also of the signal that ends it
ALARM = re.compile(r"signal \d+|SIG[A-Z]{3,}|(?i:segfault|segmentation|crash|abort|core dump)\w*")


def _children() -> set[int]:
    return {int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()}


class Server:
    """A program that is used, with its port, a directory of its own, and what it printed.

    `before`: what executes it; nothing, or splitlock.
    """

    def __init__(self, before: list[str], place: Path, environment: dict[str, str]) -> None:
        place.mkdir(mode=0o700)
        self.place = place
        self.log = place / "log"
        self._before = before
        self._environment = {**environment, "HOME": str(place)}
        self._process: subprocess.Popen[bytes] | None = None
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]

    def start(self, *words: str | Path, within: Sequence[str] = (), **more: Any) -> None:
        """`within`: what is to execute splitlock, or the program."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [str(word) for word in (*within, *self._before, *words)],
                **{"stdout": log, **more},
                stderr=log,
                env=self._environment,
                cwd=self.place,
                start_new_session=True,
            )

    def run(self, *words: str | Path, **more: Any) -> int:
        """A program that ends by itself: its exit status."""
        self.start(*words, **more)
        return self.end()

    def wait(self, *client: str) -> None:
        """Until it listens, and a client, where one is named, says that it is ready."""
        assert self._process
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=5):
                if not client or not subprocess.run(client, capture_output=True, timeout=60, check=False).returncode:
                    return
            assert self._process.poll() is None, self.log.read_text()
            time.sleep(0.05)
        raise AssertionError("it does not listen")

    def tell(self, number: int) -> None:
        assert self._process
        self._process.send_signal(number)

    def end(self, number: int = 0) -> int:
        """Its exit status, as a shell has it; a signal ends it, or it ends by itself."""
        assert self._process
        if number:
            self.tell(number)
        status = self._process.wait(PATIENCE)
        return status if status >= 0 else 128 - status

    def get(self, path: str = "/") -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()

    def get_all(self, *paths: str) -> list[tuple[int, bytes]]:
        """By eight clients at once."""
        with ThreadPoolExecutor(8) as clients:
            return list(clients.map(self.get, paths))

    def alarms(self) -> set[str]:
        return set(ALARM.findall(self.log.read_text(errors="replace")))

    def kill(self) -> None:
        if self._process and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


Use = Callable[[Server], Any]
Both = Callable[..., None]


@pytest.fixture
def both(tmp_path: Path, environment: dict[str, str]) -> Iterator[Both]:
    """`both(use)`: what `use` gives of a program is the same alone and watched, and so is who is left of it.

    All its images are watched, but for `PARTS` and for what further words say.
    """
    report = tmp_path / "report.json"
    watched = [*COMMAND, "run", "--split-lock-detect=warn", "-o", str(report), "--format", "json", "--"]
    ways: dict[str, list[str]] = {"alone": [], "watched": watched}
    servers: list[Server] = []

    def check(use: Use, *unwatched: str) -> None:
        told = []
        for name, before in ways.items():
            children = _children()
            servers.append(Server(before, tmp_path / name, environment))
            told.append((use(servers[-1]), servers[-1].alarms(), _left(children)))
        assert told[1] == told[0]
        found = json.loads(report.read_text())
        spent(2 * found["hits"])
        reasons = [(entry["reason"], entry.get("image")) for entry in found["unmonitored"]]
        assert [(reason, image) for reason, image in reasons if not reason.startswith((*PARTS, *unwatched))] == []

    libc = ctypes.CDLL(None)
    libc.prctl(_SUBREAPER, 1)  # who outlives its parent becomes our child
    yield check
    for server in servers:
        server.kill()
    libc.prctl(_SUBREAPER, 0)


def _left(before: set[int]) -> list[str]:
    """The names of what still runs of a program that has ended, a while after."""
    until = time.monotonic() + 20
    while True:
        left = _children() - before
        for pid in left:
            os.waitpid(pid, os.WNOHANG)
        if not left or time.monotonic() > until:
            return sorted(Path(f"/proc/{pid}/comm").read_text() for pid in left)
        time.sleep(0.1)


def _program(name: str, package: str, directories: str = "") -> str:
    path = shutil.which(name, path=os.pathsep.join([*directories.split(), os.environ["PATH"], "/usr/sbin"]))
    if not path:
        pytest.skip(f"needs Debian's {package}")
    return path


SQL = """
create table numbers as select n, md5(n::text) as word from generate_series(1, 50000) n;
create index on numbers (word);
vacuum analyze numbers;
set parallel_setup_cost = 0; set parallel_tuple_cost = 0; set min_parallel_table_scan_size = 0;
explain (costs off) select count(*), sum(n) from numbers;
select count(*), sum(n), max(word) from numbers;
begin; delete from numbers where n % 2 = 0; select count(*) from numbers; rollback;
select n from numbers where word < '0002' order by word;
select nothing from numbers;
listen here; notify here;
checkpoint;
"""


def test_postgres(both: Both) -> None:
    """With the workers of a parallel query; it is told to stop while a client is connected."""
    places = " ".join(map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)))
    initdb, postgres, psql = (_program(name, "postgresql", places) for name in ("initdb", "postgres", "psql"))
    # It refuses to be root: here it has nobody's number, and may do what we may.
    other = [] if os.geteuid() else ["unshare", "--user", "--map-user=65534", "--map-group=65534"]
    if other and subprocess.run([*other, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no permission to have another user's number")

    def use(server: Server) -> list[Any]:
        data = server.place / "data"
        made = server.run(
            initdb, "-D", data, "-U", "test", "-A", "trust", "-E", "UTF8", "--no-locale", "-N", within=other
        )
        server.start(postgres, "-D", data, "-p", str(server.port), "-h", "127.0.0.1", "-k", "", within=other)
        words = [psql, "-X", "-h", "127.0.0.1", "-p", str(server.port), "-U", "test", "postgres"]
        server.wait(*words, "-c", "select 1")
        done = subprocess.run(words, input=SQL, capture_output=True, text=True, timeout=PATIENCE, check=False)
        with subprocess.Popen([*words, "-c", "select pg_sleep(60)"], stderr=subprocess.PIPE, text=True) as client:
            time.sleep(1)
            status = server.end(signal.SIGINT)
            told = client.communicate(timeout=60)[1]
        said = re.sub(r"PID \d+", "PID", done.stdout + done.stderr)
        return [made, said, done.returncode, told.splitlines()[0], status]

    both(use)


CONFIGURATION = """
daemon off;
{user}
worker_processes 2;
pid {place}/pid;
error_log {place}/log info;
events {{ worker_connections 64; }}
http {{
    access_log off;
    {bodies}
    server {{
        listen 127.0.0.1:{port};
        location / {{ root /usr/share/nginx/html; gzip on; }}
        location /said {{ return 200 "said $arg_what"; }}
        location /passed/ {{ proxy_pass http://127.0.0.1:{port}/; }}
    }}
}}
"""


def test_nginx(both: Both) -> None:
    """A master and its workers, which become another user where they can; new ones after SIGHUP."""
    nginx = _program("nginx", "nginx-light")

    def use(server: Server) -> list[Any]:
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        text = CONFIGURATION.format(
            user="" if os.geteuid() else "user nobody nogroup;",
            place=server.place,
            port=server.port,
            bodies=" ".join(f"{kind}_temp_path {server.place}/{kind};" for kind in kinds),
        )
        (server.place / "nginx.conf").write_text(text)
        server.start(nginx, "-c", server.place / "nginx.conf", "-e", server.log)
        server.wait()
        paths = [path for n in range(50) for path in ("/", f"/said?what={n}", "/passed/said", "/nothing")]
        answers = server.get_all(*paths)
        server.tell(signal.SIGHUP)
        time.sleep(1)
        return [answers, server.get_all(*paths), server.end(signal.SIGQUIT)]

    both(use)


COMMANDS = """
set name value
get name
incrby counter 5
rpush list c b a
sort list alpha
eval "local n = 0; for i = 1, 1000 do n = n + redis.call('incr', KEYS[1]) end; return n" 1 counter
multi
incr counter
get counter
exec
bgsave
dbsize
nothing
"""


def test_redis(both: Both) -> None:
    """With threads for its clients, and a child that saves."""
    redis, client = _program("redis-server", "redis-server"), _program("redis-cli", "redis-tools")

    def use(server: Server) -> list[Any]:
        options = ["--bind", "127.0.0.1", "--io-threads", "2", "--appendonly", "yes"]
        server.start(redis, "--port", str(server.port), "--dir", server.place, *options)
        server.wait()
        words = [client, "-p", str(server.port)]
        done = subprocess.run(words, input=COMMANDS, capture_output=True, text=True, timeout=60, check=False)
        many = [client.replace("-cli", "-benchmark"), "-p", str(server.port), "-n", "5000", "-q", "-t", "incr"]
        subprocess.run(many, capture_output=True, timeout=60, check=True)
        total = subprocess.run([*words, "get", "counter:__rand_int__"], capture_output=True, timeout=60, check=True)
        return [done.stdout, done.stderr, total.stdout, server.end(signal.SIGTERM)]

    both(use)


JAVA = """
import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;
import java.util.concurrent.*;
import java.util.concurrent.atomic.*;
import java.util.stream.*;

public class Served {
    public static void main(String[] words) throws Exception {
        HttpServer server = HttpServer.create(new InetSocketAddress("127.0.0.1", Integer.parseInt(words[0])), 0);
        server.setExecutor(Executors.newFixedThreadPool(4));
        server.createContext("/", exchange -> {
            AtomicLong sum = new AtomicLong();
            ConcurrentHashMap<String, Integer> words_of = new ConcurrentHashMap<>();
            IntStream.range(0, 200_000).parallel().forEach(n -> {
                sum.addAndGet(n % 7);
                words_of.merge("word " + n % 100, 1, Integer::sum);
            });
            try { Object nothing = null; nothing.hashCode(); } catch (NullPointerException e) { sum.incrementAndGet(); }
            byte[] text = (sum + " " + new ConcurrentSkipListMap<>(words_of)).getBytes();
            exchange.sendResponseHeaders(200, text.length);
            exchange.getResponseBody().write(text);
            exchange.close();
        });
        Runtime.getRuntime().addShutdownHook(new Thread(() -> { server.stop(0); System.out.println("stopped"); }));
        server.start();
    }
}
"""


@pytest.mark.parametrize("collector", ["G1", "Parallel", "Z"])
def test_java(both: Both, collector: str) -> None:
    """Compiled at run time, by the compilers that it is; its null pointers are signals."""
    java = _program("java", "default-jdk-headless")

    def use(server: Server) -> list[Any]:
        (server.place / "Served.java").write_text(JAVA)
        server.start(java, f"-XX:+Use{collector}GC", "-Xmx256m", server.place / "Served.java", str(server.port))
        server.wait()
        return [server.get_all(*["/"] * 40), server.end(signal.SIGTERM), server.log.read_text()]

    both(use)


NODE = """
const { Worker, isMainThread, workerData } = require('worker_threads');
const crypto = require('crypto'), zlib = require('zlib'), { execFile } = require('child_process');
function serve(request, response) {
    const shared = new SharedArrayBuffer(4);
    const work = done => new Worker(__filename, { workerData: shared }).on('exit', done);
    const workers = [new Promise(work), new Promise(work)];
    const packed = new Promise(done => zlib.gzip('text'.repeat(1e5), (failed, made) => done(made)));
    const child = new Promise(done => execFile(process.execPath, ['-p', '6*7'], (failed, out) => done(out)));
    Promise.all([packed, child, ...workers]).then(([made, out]) => {
        const sum = crypto.createHash('sha256').update(made).digest('hex');
        response.end(`${new Int32Array(shared)[0]} ${sum} ${out}`);
    });
}
if (isMainThread) {
    process.on('SIGTERM', () => { console.log('stopped'); process.exit(3); });
    require('http').createServer(serve).listen(+process.argv[2], '127.0.0.1');
} else {
    for (let i = 0; i < 20000; i++) Atomics.add(new Int32Array(workerData), 0, 1);
}
"""


def test_node(both: Both) -> None:
    """With workers on shared memory, its own threads, and a child."""
    node = _program("node", "nodejs")

    def use(server: Server) -> list[Any]:
        (server.place / "served.js").write_text(NODE)
        server.start(node, server.place / "served.js", str(server.port))
        server.wait()
        return [server.get_all(*["/"] * 10), server.end(signal.SIGTERM), server.log.read_text()]

    both(use)


PAGE = """
<!doctype html><meta charset="utf-8"><title>page</title><style>p { color: #123; font: 20px monospace }</style>
<p id="said"></p><canvas id="drawn" width="200" height="100"></canvas>
<script>
    const code = new Uint8Array([0, 97, 115, 109, 1, 0, 0, 0, 1, 7, 1, 96, 2, 127, 127, 1, 127, 3, 2, 1, 0,
                                 7, 7, 1, 3, 97, 100, 100, 0, 0, 10, 9, 1, 7, 0, 32, 0, 32, 1, 106, 11]);
    const add = new WebAssembly.Instance(new WebAssembly.Module(code)).exports.add;
    let sum = 0;
    for (let i = 0; i < 3e5; i++) sum = add(sum, i % 7);
    const words = [...Array(2e4).keys()].map(n => `word ${n * 7919 % 20000}`).sort();
    said.textContent = `${sum} ${words[1234]} ${words.join().length}`;
    const pen = drawn.getContext('2d');
    for (let i = 0; i < 100; i++) { pen.fillStyle = `rgb(${2 * i}, 80, 120)`; pen.fillRect(2 * i, i, 20, 20); }
</script>
"""


def test_firefox(both: Both) -> None:
    """Its processes, their sandboxes among them, make the same picture of a page."""
    firefox = _program("firefox-esr", "firefox-esr")

    def use(server: Server) -> list[Any]:
        page, picture, profile = (server.place / name for name in ("page.html", "page.png", "profile"))
        page.write_text(PAGE)
        profile.mkdir()
        options = ["--headless", "--no-remote", "--screenshot", str(picture), page.as_uri()]
        return [server.run(firefox, "--profile", profile, *options), picture.read_bytes()]

    both(use, "1 ran unwatched")  # its network process, which is executed in an IPC namespace of its own


QUIET = """
--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync
"""


def test_chromium(both: Both) -> None:
    chromium = _program("chromium", "chromium")

    def use(server: Server) -> list[Any]:
        page, out = server.place / "page.html", server.place / "out"
        page.write_text(PAGE)
        words = [*QUIET.split(), f"--user-data-dir={server.place}/profile", "--dump-dom", page.as_uri()]
        with out.open("wb") as stdout:
            status = server.run(chromium, *words, stdout=stdout)
        return [status, out.read_text()]

    both(use)
