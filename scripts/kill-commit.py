#!/usr/bin/env python3
"""One large commit whose daemon is killed (-9) again and again, while another mount watches.

    scripts/kill-commit.py [KILLS]          20 if not given; some minutes, 8 GB of disk

2000 files (0 B to 200 MiB) are staged in a mount over SeaweedFS and committed. The daemon is killed
when its commit has come as far as was drawn, once in each of KILLS equal stretches of the way; each time
it is mounted again, and the commit goes on. A second mount, with nothing in common but the bucket, must
show none of the files or all of them. In the end all are compared, and an object of somebody else's must
be as it was.

The daemon's requests pass a proxy that counts them. The way is measured there: half of it are bytes of
bodies, half of it requests that carry them. No object and no part may be sent once more but for a kill
that met it on its way: one whose answer the daemon had not got, or had got too short before the kill to
have written that down.

Needs target/release/dsfs (or DSFS_BIN) and what scripts/test-env.sh installs; DSFS_KILL_SEED repeats the
sizes and the stretches of a run.
"""

import hashlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse

FILES, PART_BYTES, PIECE = 2000, 8 << 20, 1 << 20
KEY, SECRET, BUCKET, NAME = "benchkey", "benchsecret", "assets", "run_07"
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
DSFS = os.environ.get("DSFS_BIN", f"{ROOT}/target/release/dsfs")
# An answer that passed the proxy this long before a kill has been read, and noted, by a daemon that lives.
NOTED_SECONDS = 0.25
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
    """SeaweedFS."""

    def __init__(self, work):
        with open(f"{work}/s3.json", "w") as f:
            f.write('{"identities":[{"name":"bench","credentials":[{"accessKey":"%s","secretKey":"%s"}],'
                    '"actions":["Admin","Read","Write","List","Tagging"]}]}' % (KEY, SECRET))
        os.mkdir(f"{work}/server")
        names = ["s3.port", "s3.port.grpc", "master.port", "master.port.grpc", "volume.port", "volume.port.grpc",
                 "filer.port", "filer.port.grpc"]
        ports = dict(zip(names, free_ports(len(names))))
        argv = [f"{VENV}/weed", "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3", f"-dir={work}/server",
                "-master.volumeSizeLimitMB=1024", "-volume.max=50", f"-s3.config={work}/s3.json",
                "-s3.port.iceberg=0", "-s3.port.lance=0", *(f"-{name}={port}" for name, port in ports.items())]
        self.process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.port = ports["s3.port"]
        self.endpoint = f"http://127.0.0.1:{self.port}"
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


class Sending:
    """One request that carries a body of the dataset."""

    def __init__(self, what, size):
        self.what, self.size, self.sent, self.answered, self.ok = what, size, 0, None, False


class Proxy:
    """Passes connections on, and notes every object and part that is sent for the dataset."""

    def __init__(self, port):
        self.port, self.lock, self.sendings, self.known, self.trouble = port, threading.Lock(), [], 0, None
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.endpoint = "http://127.0.0.1:%d" % self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            client, _ = self.listener.accept()
            Connection(self, client, socket.create_connection(("127.0.0.1", self.port)))

    def begin(self, method, target, size):
        url = urllib.parse.urlsplit(target)
        start, query = f"/{BUCKET}/datasets/{NAME}/", urllib.parse.parse_qs(url.query)
        path = urllib.parse.unquote(url.path)
        if method != "PUT" or not path.startswith(start):
            return None
        sending = Sending((path.removeprefix(start), int(query.get("partNumber", ["0"])[0])), size)
        with self.lock:
            self.sendings.append(sending)
        return sending

    def way(self, total_bytes, needed):
        """How much of the way is behind: bytes and answered requests, each counted once."""
        with self.lock:
            done = {sending.what: sending.size for sending in self.sendings if sending.ok}
        return sum(done.values()) / total_bytes / 2 + len(done) / needed / 2

    def killed(self, when):
        """What a kill at this time met on its way: sent since the last one, and not answered for long enough."""
        with self.lock:
            since, self.known = self.known, len(self.sendings)
            return {sending.what for sending in self.sendings[since:]
                    if sending.answered is None or sending.answered > when - NOTED_SECONDS}


class Connection:
    """HTTP/1.1 both ways, as far as it takes to know where a request begins and whether it was answered."""

    def __init__(self, proxy, client, server):
        self.proxy, self.client, self.server = proxy, client, server
        self.current, self.waiting = None, False
        for pump in [self.requests, self.answers]:
            threading.Thread(target=self.run, args=[pump], daemon=True).start()

    def run(self, pump):
        try:
            pump()
        except OSError:
            pass
        for end in [self.client, self.server]:
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def requests(self):
        head, left = b"", 0
        while data := self.client.recv(1 << 18):
            self.server.sendall(data)
            while data:
                if left:
                    size = min(left, len(data))
                    left -= size
                    if self.current:
                        self.current.sent += size
                    data = data[size:]
                    continue
                head += data
                end = head.find(b"\r\n\r\n")
                if end < 0:
                    break
                lines, data, head = head[:end].decode("latin-1").split("\r\n"), head[end + 4:], b""
                fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
                if "transfer-encoding" in fields:
                    self.proxy.trouble = "a request without a length"
                left = int(fields.get("content-length", "0"))
                method, target, _ = lines[0].split(" ")
                size = int(fields.get("x-amz-decoded-content-length", left))
                self.current = self.proxy.begin(method, target, size)
                self.waiting = True

    def answers(self):
        while data := self.server.recv(1 << 18):
            if self.waiting and not data.startswith(b"HTTP/1.1 100"):
                self.waiting = False
                if self.current:
                    self.current.ok = data.startswith(b"HTTP/1.1 200")
                    self.current.answered = time.monotonic()
            self.client.sendall(data)


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

    def is_alive(self):
        return self.daemon.poll() is None

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


def commit_and_kill(rng, client, kills, proxy, total_bytes, needed):
    """Commits until it is done; of each kill, how far it had come and what was on its way; the time in all."""
    points = [(kill + rng.random()) / kills for kill in range(kills)]
    killed, started = [], time.monotonic()
    while True:
        commit = client.commit()
        while commit.poll() is None:
            time.sleep(0.01)
            way = proxy.way(total_bytes, needed)
            if len(killed) < kills and way >= points[len(killed)]:
                client.kill()
                killed.append((way, proxy.killed(time.monotonic())))
                break
        said = commit.communicate()[1]
        if len(killed) and commit.returncode != 0 and not client.is_alive():
            client.mount()
            continue
        if commit.returncode != 0:
            sys.exit(f"kill-commit: the commit ended with {commit.returncode}: {said}")
        return killed, time.monotonic() - started


def sent_twice(proxy, killed):
    """What was sent, how often in all; what was sent more often than a kill explains."""
    counts = {}
    for sending in proxy.sendings:
        counts[sending.what] = counts.get(sending.what, 0) + 1
    met = {what: sum(what in on_the_way for _, on_the_way in killed) for what in counts}
    return sum(counts.values()), {what: n for what, n in counts.items() if n > 1 + met[what]}


def main(kills):
    seed = int(os.environ.get("DSFS_KILL_SEED", random.randrange(1 << 32)))
    rng = random.Random(seed)
    work = tempfile.mkdtemp(prefix="dsfs-kill-")
    server, clients = Server(work), []
    try:
        proxy = Proxy(server.port)
        writer = Client(work, "writer", proxy.endpoint)
        reader = Client(work, "reader", server.endpoint, "--read-only")
        clients = [writer, reader]
        for client in clients:
            client.mount()
        digests, sizes = stage(rng, f"{writer.mnt}/{NAME}")
        total = sum(sizes)
        parts = [max(1, -(-size // PART_BYTES)) for size in sizes]
        # A large file is one more request where its key is claimed first (grade single-put).
        claims = sum(count > 1 for count in parts)
        print(f"seed {seed}: {len(sizes)} files, {total / 1e6:.0f} MB are staged", flush=True)
        watcher = Watcher(f"{reader.mnt}/{NAME}")
        watcher.start()
        killed, seconds = commit_and_kill(rng, writer, kills, proxy, total, sum(parts))
        wait_until("commit in the other mount", lambda: watcher.counts[-1] == len(sizes))
        watcher.stop.set()
        watcher.join()

        partial = [count for count in watcher.counts if count not in (0, len(sizes))]
        wrong = [path for path, digest in digests.items() if digest_of(f"{reader.mnt}/{NAME}/{path}") != digest]
        foreign = server.head(f"datasets/{NAME}/foreign") == server.foreign
        sent, unexplained = sent_twice(proxy, killed)
        met = sum(len(on_the_way) for _, on_the_way in killed)
        sent_bytes = sum(sending.sent for sending in proxy.sendings)
        print(f"killed {len(killed)} times; committed in {seconds:.0f} s, all mounts included")
        print(f"the way behind at each kill: {' '.join(f'{way:.0%}' for way, _ in killed)}")
        print(f"objects and parts on their way at each: {' '.join(str(len(on)) for _, on in killed)}")
        print(f"objects and parts sent: {sent}; the files need {sum(parts)}, and up to {claims} claims; "
              f"kills met {met} on their way; {len(unexplained)} sent again without that")
        print(f"bytes sent: {sent_bytes / total:.3f} times the files'")
        print(f"the other mount was looked at {len(watcher.counts)} times: {len(partial)} partial")
        print(f"{len(digests) - len(wrong)} of {len(digests)} files are the same; somebody else's object: "
              f"{'as it was' if foreign else 'CHANGED'}")
        for what, count in list(unexplained.items())[:20]:
            print(f"  {what}: {count} times")
        if proxy.trouble:
            sys.exit(f"kill-commit: {proxy.trouble}")
        if partial or wrong or not foreign or unexplained or len(killed) < kills or sent > sum(parts) + claims + met:
            sys.exit("kill-commit: FAILED")
    finally:
        for client in clients:
            client.unmount()
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
        shutil.rmtree(work, ignore_errors=True)


main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
