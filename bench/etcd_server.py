"""One real etcd for the bench: started, killed, asked what it did."""

import os
import signal
import urllib.request
from pathlib import Path

from forwarders import find_program
from machine import free_ports
from process import Process, rss_mib


class EtcdServer:
    """One etcd of its own, as Debian ships it and with its defaults, its data in the folder."""

    def __init__(self, folder: Path) -> None:
        client, peer = free_ports(2)
        self.url, self._folder = f"http://127.0.0.1:{client}", folder
        peer_url = f"http://127.0.0.1:{peer}"
        self._command = [find_program("etcd", "etcd-server"), "--name", "one", "--data-dir", str(folder / "data")]
        self._command += ["--listen-client-urls", self.url, "--advertise-client-urls", self.url, "--logger", "zap"]
        self._command += ["--listen-peer-urls", peer_url, "--initial-advertise-peer-urls", peer_url]
        self._command += ["--initial-cluster", f"one={peer_url}"]
        self._spent_s = 0.0  # by those that were killed
        self.start()

    def start(self) -> None:
        """Start it, and wait until it takes requests."""
        self._process = Process("etcd", self._command, cpus=None, log=self._folder / "etcd.log", cwd=self._folder)
        self._process.wait_until(self._healthy, "healthy")

    def kill(self) -> None:
        """End it as a power cut would."""
        self._spent_s += self._process.cpu_s()
        os.kill(self._process.pids()[0], signal.SIGKILL)
        self._process.stop()

    def stop(self) -> None:
        """End it for good."""
        self._process.stop()

    def _healthy(self) -> bool:
        try:
            return '"true"' in self._get("health")
        except OSError:
            return False

    def _get(self, path: str) -> str:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{self.url}/{path}", timeout=30) as answer:
            return str(answer.read().decode())

    def cpu_s(self) -> float:
        """CPU seconds so far."""
        return self._spent_s + self._process.cpu_s()

    def rss_mib(self) -> float:
        """Its resident memory now."""
        return rss_mib(self._process.pids()[0])

    def requests(self) -> dict[str, int]:
        """What it has been asked for since it was started, by its own metrics: requests by method."""
        found: dict[str, int] = {}
        for line in self._get("metrics").splitlines():
            if line.startswith("grpc_server_started_total{") and not line.endswith(" 0"):
                labels, _, value = line.rpartition(" ")
                method = labels.partition('grpc_method="')[2].partition('"')[0]
                found[method] = found.get(method, 0) + int(float(value))
        return found
