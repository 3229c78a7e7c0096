#!/usr/bin/env python3
"""One large commit whose daemon is killed (-9) again and again, while another mount watches.

    scripts/kill-commit.py [KILLS]          20 if not given; some minutes, 8 GB of disk

2000 files (0 B to 200 MiB) are staged in a mount over SeaweedFS and committed. The daemon is killed
at random moments; each time it is mounted again, and the commit goes on. A second mount, with nothing
in common but the bucket, must show none of the files or all of them. In the end all are compared, an
object of somebody else's must be as it was, and what the server received says what was sent twice.
Needs target/release/dsfs and what scripts/test-env.sh installs; DSFS_KILL_SEED repeats the sizes and
the times of a run.
"""

import hashlib
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

FILES, PART_BYTES, PIECE = 2000, 8 << 20, 1 << 20
KEY, SECRET, BUCKET, NAME = "benchkey", "benchsecret", "assets", "run_07"
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
DSFS = f"{ROOT}/target/release/dsfs"
VENV = os.environ.get("DSFS_TEST_VENV", f"{ROOT}/target/test-venv") + "/bin"


def wait_until(what, condition, seconds=90):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if condition():
                return
        except Exception:  # not up yet, or a mount whose daemon is gone
            pass
        time.sleep(0.05)
    sys.exit(f"kill-commit: no {what} within {seconds} s")


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


class Server:
    """SeaweedFS, which counts what it receives."""

    def __init__(self, work):
        with open(f"{work}/s3.json", "w") as f:
            f.write('{"identities":[{"name":"bench","credentials":[{"accessKey":"%s","secretKey":"%s"}],'
                    '"actions":["Admin","Read","Write","List","Tagging"]}]}' % (KEY, SECRET))
        os.mkdir(f"{work}/server")
        names = ["s3.port", "s3.port.grpc", "master.port", "master.port.grpc", "volume.port", "volume.port.grpc",
                 "filer.port", "filer.port.grpc", "metricsPort"]
        ports = dict(zip(names, free_ports(len(names))))
        argv = [f"{VENV}/weed", "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3", f"-dir={work}/server",
                "-master.volumeSizeLimitMB=1024", "-volume.max=50", f"-s3.config={work}/s3.json",
                "-s3.port.iceberg=0", "-s3.port.lance=0", *(f"-{name}={port}" for name, port in ports.items())]
        self.process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.endpoint = f"http://127.0.0.1:{ports['s3.port']}"
        self.metrics = f"http://127.0.0.1:{ports['metricsPort']}/metrics"
        import boto3
        self.s3 = boto3.client("s3", endpoint_url=self.endpoint, region_name="us-east-1", aws_access_key_id=KEY,
                               aws_secret_access_key=SECRET)
        body = b"somebody else's"
        foreign = f"datasets/{NAME}/foreign"
        wait_until("server", lambda: self.s3.create_bucket(Bucket=BUCKET))
        wait_until("bucket", lambda: self.s3.put_object(Bucket=BUCKET, Key=foreign, Body=body))
        self.foreign = self.head(foreign)

    def head(self, key):
        answer = self.s3.head_object(Bucket=BUCKET, Key=key)
        return answer["ETag"], answer["LastModified"]

    def received(self):
        """Bytes of bodies, as far as the server counts them, and PUTs that were answered with success."""
        text = urllib.request.urlopen(self.metrics).read().decode()
        traffic = re.findall(r"^SeaweedFS_s3_bucket_traffic_received_bytes_total\{[^}]*\} (\S+)$", text, re.M)
        puts = re.findall(r'^SeaweedFS_s3_request_total\{[^}]*code="200",type="PUT"\} (\S+)$', text, re.M)
        if not traffic or not puts:
            sys.exit(f"kill-commit: the server does not say what it received: {self.metrics}")
        return int(sum(map(float, traffic))), int(sum(map(float, puts)))


class Client:
    """A user with one mount, and nothing in common with others."""

    def __init__(self, work, name, endpoint, *options):
        self.home, self.mnt = f"{work}/{name}", f"{work}/{name}/mnt"
        os.makedirs(self.mnt)
        xdg = {f"XDG_{what}_HOME": f"{self.home}/{what.lower()}" for what in ["CACHE", "STATE", "DATA", "CONFIG"]}
        self.env = {**os.environ, **xdg, "HOME": self.home, "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET,
                    "AWS_REGION": "us-east-1"}
        self.options = ["--list-ttl", "100ms", "-e", endpoint, "-b", BUCKET, *options]
        self.log = open(f"{self.home}/log", "w")

    def mount(self):
        argv = [DSFS, "mount", "--foreground", *self.options, self.mnt]
        self.daemon = subprocess.Popen(argv, env=self.env, stderr=self.log)
        wait_until("mount", lambda: os.path.ismount(self.mnt) and os.listdir(self.mnt) is not None)

    def kill(self):
        self.daemon.kill()
        self.daemon.wait()

    def commit(self):
        argv = [DSFS, "commit", NAME, "--at", self.mnt]
        return subprocess.Popen(argv, env=self.env, stdout=self.log, stderr=subprocess.PIPE, text=True)

    def unmount(self):
        subprocess.run([DSFS, "unmount", self.mnt], env=self.env, stdout=self.log, stderr=self.log)
        self.kill()


def stage(rng, directory):
    """Writes the files; the digest of each, and their sizes."""
    sizes = [200 << 20, 50 << 20, PART_BYTES, PART_BYTES + 1, 0, 0]
    sizes += [int(2 ** rng.uniform(0, 24)) for _ in range(FILES - len(sizes))]
    digests = {}
    for i, size in enumerate(sizes):
        path = f"d{i % 40:02}/{i:05}.bin"
        os.makedirs(os.path.dirname(f"{directory}/{path}"), exist_ok=True)
        digest = hashlib.sha256()
        with open(f"{directory}/{path}", "wb") as f:
            for at in range(0, size, PIECE):
                piece = rng.randbytes(min(PIECE, size - at))
                digest.update(piece)
                f.write(piece)
        digests[path] = digest.hexdigest()
    return digests, sizes


def found(directory):
    walk = os.walk(directory)
    return {os.path.relpath(f"{at}/{name}", directory) for at, _, names in walk for name in names} - {"foreign"}


def digest_of(path):
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


class Watcher(threading.Thread):
    """Looks again and again how many of the files the other mount shows."""

    def __init__(self, directory):
        super().__init__(daemon=True)
        self.directory, self.counts, self.stop = directory, [], threading.Event()

    def run(self):
        while not self.stop.is_set():
            self.counts.append(len(found(self.directory)))
            self.stop.wait(0.2)


def commit_and_kill(rng, client, kills, server):
    """Commits until it is done; how many PUTs there had been at each kill, and the time in all."""
    killed, started = [], time.monotonic()
    while True:
        commit = client.commit()
        try:
            commit.wait(rng.uniform(0.1, 2.5) if len(killed) < kills else None)
        except subprocess.TimeoutExpired:
            client.kill()
            commit.communicate()
            killed.append(server.received()[1])
            client.mount()
            continue
        if commit.returncode != 0:
            sys.exit(f"kill-commit: the commit ended with {commit.returncode}: {commit.stderr.read()}")
        return killed, time.monotonic() - started


def main(kills):
    seed = int(os.environ.get("DSFS_KILL_SEED", random.randrange(1 << 32)))
    rng = random.Random(seed)
    work = tempfile.mkdtemp(prefix="dsfs-kill-")
    server, clients = Server(work), []
    try:
        writer = Client(work, "writer", server.endpoint)
        reader = Client(work, "reader", server.endpoint, "--read-only")
        clients = [writer, reader]
        for client in clients:
            client.mount()
        digests, sizes = stage(rng, f"{writer.mnt}/{NAME}")
        print(f"seed {seed}: {len(sizes)} files, {sum(sizes) / 1e6:.0f} MB are staged", flush=True)
        watcher = Watcher(f"{reader.mnt}/{NAME}")
        watcher.start()
        before = server.received()
        killed, seconds = commit_and_kill(rng, writer, kills, server)
        after = server.received()
        wait_until("commit in the other mount", lambda: watcher.counts[-1] == len(sizes))
        watcher.stop.set()
        watcher.join()

        partial = [count for count in watcher.counts if count not in (0, len(sizes))]
        wrong = [path for path, digest in digests.items() if digest_of(f"{reader.mnt}/{NAME}/{path}") != digest]
        foreign = server.head(f"datasets/{NAME}/foreign") == server.foreign
        needed = sum(max(1, -(-size // PART_BYTES)) for size in sizes)
        print(f"killed {len(killed)} times; committed in {seconds:.0f} s, all mounts included")
        print(f"PUTs that had been answered at each: {[puts - before[1] for puts in killed]}")
        print(f"received: {(after[0] - before[0]) / sum(sizes):.3f} times the files' bytes; "
              f"{after[1] - before[1]} PUTs answered; the files need {needed}")
        print(f"the other mount was looked at {len(watcher.counts)} times: {len(partial)} partial")
        print(f"{len(digests) - len(wrong)} of {len(digests)} files are the same; somebody else's object: "
              f"{'as it was' if foreign else 'CHANGED'}")
        if partial or wrong or not foreign or len(killed) < kills:
            sys.exit("kill-commit: FAILED")
    finally:
        for client in clients:
            client.unmount()
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
        shutil.rmtree(work, ignore_errors=True)


main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
