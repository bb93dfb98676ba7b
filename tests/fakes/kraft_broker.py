"""Apache Kafka itself, one node in KRaft mode, for the tests that the mock broker serves otherwise.

Its jars come through Maven into a cache outside the tree, once. Starting a JVM for each run is not
everybody's wish, so these tests run only where ``KRAFT_VARIABLE`` is set.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from kafka import KafkaAdminClient
from kafka.admin import NewTopic

from tests.fakes.kafka_broker import Message, read_topic

KRAFT_VARIABLE = "ROUTER_TEST_KAFKA"
KAFKA_VERSION = "4.1.0"
DOWNLOAD_TIMEOUT_S = 600.0
START_TIMEOUT_S = 60.0
_CLUSTER_ID = "AAAAAAAAQACAAAAAAAAAAQ"
_JVM = ("java", "-Xms192m", "-Xmx192m", "-XX:TieredStopAtLevel=1", "-cp")

_POM = f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>tests</groupId><artifactId>kafka</artifactId><version>1</version>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId>
      <artifactId>kafka_2.13</artifactId>
      <version>{KAFKA_VERSION}</version>
    </dependency>
  </dependencies>
</project>
"""

_PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={logs}
num.partitions=4
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
"""


def why_not() -> str | None:
    """Why Apache Kafka cannot be had here; ``None`` when it can."""
    if not os.environ.get(KRAFT_VARIABLE):
        return f"Apache Kafka is tested only where {KRAFT_VARIABLE}=1 is set"
    for program in ("java", "mvn"):
        if shutil.which(program) is None:
            return f"{KRAFT_VARIABLE} is set, but there is no {program} on PATH"
    return None


def jars() -> Path:
    """The directory of Kafka's jars, fetched on the first call ever."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    place = Path(home) / "api-router-tests" / f"kafka-{KAFKA_VERSION}"
    if place.is_dir():
        return place
    draft = place.with_name(f"{place.name}.{os.getpid()}")
    draft.mkdir(parents=True)
    try:
        (draft / "pom.xml").write_text(_POM)
        subprocess.run(
            [
                *("mvn", "-q", "-B", "-f", str(draft / "pom.xml")),
                *("dependency:copy-dependencies", "-DincludeScope=runtime"),
                f"-DoutputDirectory={draft}",
            ],
            check=True,
            timeout=DOWNLOAD_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        with contextlib.suppress(OSError):  # another run was quicker
            draft.rename(place)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return place


class KraftBroker:
    """One node that keeps its topics on disk, so that it can be killed and started again."""

    api_version = None

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True)
        ports = _free_ports(2)
        self.address = f"127.0.0.1:{ports[0]}"
        self._classpath = f"{jars()}/*"
        self._properties = directory / "server.properties"
        self._properties.write_text(
            _PROPERTIES.format(port=ports[0], controller=ports[1], logs=directory / "logs")
        )
        self._output = (directory / "output").open("wb")
        self._run("kafka.tools.StorageTool", "format", "-t", _CLUSTER_ID, "-c").wait()
        self._process = self._run("kafka.Kafka")
        self._await()

    @property
    def pid(self) -> int:
        """The process that is the broker."""
        return self._process.pid

    def read(self, topic: str) -> list[Message]:
        """Everything in a topic."""
        return read_topic(self.address, topic, None)

    def go_down(self) -> None:
        """Kill it."""
        self._process.kill()
        self._process.wait()

    def come_up(self) -> None:
        """Start it again with what it has on disk."""
        self._process = self._run("kafka.Kafka")
        self._await()

    def make_topic(self, name: str, partitions: int, **settings: str) -> None:
        """A topic with so many partitions; underscores in settings' names stand for dots."""
        configs = {key.replace("_", "."): value for key, value in settings.items()}
        admin = KafkaAdminClient(bootstrap_servers=[self.address])
        try:
            admin.create_topics([NewTopic(name, partitions, 1, topic_configs=configs)])
        finally:
            admin.close()

    def pause(self) -> None:
        """Stop answering; connections stay, as with a host that hangs."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Go on where it was paused."""
        os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        """End it for good."""
        self.go_down()
        self._output.close()

    def _run(self, main: str, *arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*_JVM, self._classpath, main, *arguments, str(self._properties)],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def _await(self) -> None:
        """First for the port: a client that is made in vain leaves its sockets behind."""
        host, _, port = self.address.partition(":")
        ends_s = time.monotonic() + START_TIMEOUT_S
        while True:
            assert self._process.poll() is None, "Kafka did not start"
            assert time.monotonic() < ends_s, f"Kafka did not start in {START_TIMEOUT_S:g} s"
            try:
                socket.create_connection((host, int(port)), 1.0).close()
            except OSError:
                time.sleep(0.1)
            else:
                break
        KafkaAdminClient(bootstrap_servers=[self.address]).close()


@contextlib.contextmanager
def kraft_broker(directory: Path) -> Iterator[KraftBroker]:
    """A broker until the block ends."""
    broker = KraftBroker(directory)
    try:
        yield broker
    finally:
        broker.close()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as probes:
        found = []
        for _ in range(count):
            probe = probes.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            found.append(int(probe.getsockname()[1]))
        return found
