#!/usr/bin/env python3
"""Large trees: how soon they are shown, and what the daemon keeps in memory for them.

    scripts/bench-tree.py [million] [committed] [rclone]        all three if none is named; about 10 minutes

million    a dataset of 1 000 000 objects, 200 000 of them in one directory: the first `ls` of small parts,
           `find | wc -l` cold, warm and after a remount, the daemon's peak RSS
committed  100 000 files that dsfs itself has committed: `find` by a machine that has seen none of them, beside
           the time that listing them takes; with answers at once, and 50 ms later
rclone     50 000 entries in one directory, by dsfs and by `rclone mount`, one behind the other

The server is part of this script: it keeps keys in memory and answers from there, on loopback, since no S3 server
that the tests install takes a million objects in a reasonable time. It costs CPU of its own (a process beside the
client's), which `server CPU` shows. Needs target/release/dsfs (or DSFS_BIN), what scripts/test-env.sh installs, and
root or fusermount3.
"""

import asyncio
import bisect
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from multiprocessing import Process

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
DSFS = os.environ.get("DSFS_BIN", f"{ROOT}/target/release/dsfs")
RCLONE = os.environ.get("DSFS_TEST_VENV", f"{ROOT}/target/test-venv") + "/bin/rclone"
BUCKET, PORT = "assets", 19480
BODY = b"0123456789abcdef"


# ------------------------------------------------------------------ the server
class Bucket:
    """Sorted keys. Those that are made up at the start all have the same body."""

    def __init__(self, keys):
        self.keys, self.own, self.uploads = sorted(keys), {}, {}

    def put(self, key, body, meta):
        at = bisect.bisect_left(self.keys, key)
        if at == len(self.keys) or self.keys[at] != key:
            self.keys.insert(at, key)
        self.own[key] = (body, meta, time.time())

    def delete(self, key):
        at = bisect.bisect_left(self.keys, key)
        if at < len(self.keys) and self.keys[at] == key:
            del self.keys[at]
            self.own.pop(key, None)

    def get(self, key):
        at = bisect.bisect_left(self.keys, key)
        if at < len(self.keys) and self.keys[at] == key:
            return self.own.get(key, (BODY, {}, 1.7e9))
        return None

    def list(self, prefix, delimiter, after, limit):
        """Keys and common prefixes behind `after`, and whether there are more."""
        at = bisect.bisect_right(self.keys, after) if after else bisect.bisect_left(self.keys, prefix)
        if after and after < prefix:
            at = bisect.bisect_left(self.keys, prefix)
        out = []
        while at < len(self.keys) and self.keys[at].startswith(prefix):
            key = self.keys[at]
            end = key.find(delimiter, len(prefix)) if delimiter else -1
            if end >= 0:
                common = key[: end + 1]
                if common > after:  # otherwise it was listed on the page before
                    if len(out) == limit:
                        return out, True
                    out.append((common, True))
                at = bisect.bisect_left(self.keys, common[:-1] + chr(ord(common[-1]) + 1), at)
                continue
            if len(out) == limit:
                return out, True
            out.append((key, False))
            at += 1
        return out, False


def etag(body):
    return '"%s"' % hashlib.md5(body).hexdigest()


def iso(seconds):
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(seconds))


def escape(text):
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


class Server:
    def __init__(self, keys):
        self.bucket, self.requests, self.delay_ms = Bucket(keys), 0, 0

    def listing(self, query):
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        after = query.get("continuation-token") or query.get("start-after") or query.get("marker", "")
        limit = min(int(query.get("max-keys", 1000)), 1000)
        found, more = self.bucket.list(prefix, delimiter, after, limit) if limit else ([], False)
        encode = urllib.parse.quote if query.get("encoding-type") == "url" else escape
        parts = ['<?xml version="1.0"?><ListBucketResult><Name>%s</Name><KeyCount>%d</KeyCount><IsTruncated>%s</IsTruncated>'
                 % (BUCKET, len(found), "true" if more else "false")]
        if query.get("encoding-type") == "url":
            parts.append("<EncodingType>url</EncodingType>")
        for key, is_prefix in found:
            if is_prefix:
                parts.append(f"<CommonPrefixes><Prefix>{encode(key)}</Prefix></CommonPrefixes>")
            else:
                body, _, modified = self.bucket.own.get(key, (BODY, None, 1.7e9))
                parts.append(f"<Contents><Key>{encode(key)}</Key><LastModified>{iso(modified)}</LastModified>"
                             f"<ETag>{etag(body)}</ETag><Size>{len(body)}</Size></Contents>")
        if more:
            last = encode(found[-1][0])
            parts.append(f"<NextContinuationToken>{escape(found[-1][0])}</NextContinuationToken><NextMarker>{last}</NextMarker>")
        return 200, {"Content-Type": "application/xml"}, "".join(parts + ["</ListBucketResult>"]).encode()

    def answer(self, method, target, headers, body):
        path, _, raw = target.partition("?")
        query = dict(urllib.parse.parse_qsl(raw, keep_blank_values=True))
        if path == "/requests":
            self.delay_ms = int(query.get("delay_ms", self.delay_ms))
            return 200, {}, str(self.requests).encode()
        self.requests += 1
        _, _, key = urllib.parse.unquote(path).lstrip("/").partition("/")
        if not key:
            return self.listing(query) if method == "GET" else (200, {}, b"")
        there = self.bucket.get(key)
        if "uploads" in query:
            upload = str(self.requests)
            self.bucket.uploads[upload] = ({}, {k: v for k, v in headers.items() if k.startswith("x-amz-meta-")})
            return 200, {}, f"<InitiateMultipartUploadResult><UploadId>{upload}</UploadId></InitiateMultipartUploadResult>".encode()
        if "uploadId" in query and method == "PUT":
            self.bucket.uploads[query["uploadId"]][0][int(query["partNumber"])] = body
            return 200, {"ETag": etag(body)}, b""
        if "uploadId" in query and method == "DELETE":
            self.bucket.uploads.pop(query["uploadId"], None)
            return 204, {}, b""
        if method in ("PUT", "POST"):
            if headers.get("if-none-match") == "*" and there:
                return 412, {}, b"<Error><Code>PreconditionFailed</Code></Error>"
            if "if-match" in headers and (not there or headers["if-match"] != etag(there[0])):
                return 412, {}, b"<Error><Code>PreconditionFailed</Code></Error>"
            meta = {k: v for k, v in headers.items() if k.startswith("x-amz-meta-")}
            if method == "POST":
                parts, meta = self.bucket.uploads.pop(query["uploadId"])
                body = b"".join(parts[number] for number in sorted(parts))
            self.bucket.put(key, body, meta)
            done = f"<CompleteMultipartUploadResult><ETag>{escape(etag(body))}</ETag></CompleteMultipartUploadResult>"
            return 200, {"ETag": etag(body)}, done.encode() if method == "POST" else b""
        if method == "DELETE":
            self.bucket.delete(key)
            return 204, {}, b""
        if not there:
            return 404, {}, b"" if method == "HEAD" else b"<Error><Code>NoSuchKey</Code></Error>"
        content, meta, modified = there
        if "if-match" in headers and headers["if-match"] != etag(content):
            return 412, {}, b""
        head = {"ETag": etag(content), "Last-Modified": time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(modified)), **meta}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", headers.get("range", ""))
        if wanted and method == "GET":
            first, last = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
            head["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            return 206, head, content[first : last + 1]
        return 200, head, content

    async def connection(self, reader, writer):
        try:
            while True:
                lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                method, target, _ = lines[0].split(" ")
                headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:] if line)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                status, out, content = self.answer(method, target, headers, body)
                if self.delay_ms and not target.startswith("/requests"):
                    await asyncio.sleep(self.delay_ms / 1000)
                out.setdefault("Content-Length", len(content))
                head = f"HTTP/1.1 {status} -\r\n" + "".join(f"{k}: {v}\r\n" for k, v in out.items()) + "\r\n"
                writer.write(head.encode("latin-1") + (b"" if method == "HEAD" else content))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def serve(keys):
    async def run():
        server = Server(keys)
        async with await asyncio.start_server(server.connection, "127.0.0.1", PORT, limit=1 << 26):
            await asyncio.get_running_loop().create_future()

    asyncio.run(run())


# ---------------------------------------------------------------- the clients
def cpu_seconds(pid):
    fields = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_rss_mib(pid):
    return int(re.search(r"VmHWM:\s+(\d+)", open(f"/proc/{pid}/status").read())[1]) / 1024


class Run:
    """A server with these keys, and a home directory of its own for each client."""

    def __init__(self, keys):
        self.work = tempfile.mkdtemp(prefix="dsfs-tree-")
        self.server = Process(target=serve, args=(keys,), daemon=True)
        self.server.start()
        for _ in range(600):
            try:
                self.requests()
                return
            except OSError:
                time.sleep(0.1)
        sys.exit("bench-tree: the server does not answer")

    def requests(self, delay=""):
        return int(urllib.request.urlopen(f"http://127.0.0.1:{PORT}/requests{delay}").read())

    def dsfs(self, home, *arguments):
        os.makedirs(f"{self.work}/{home}/run", exist_ok=True)
        env = {"HOME": f"{self.work}/{home}", "PATH": os.environ["PATH"], "XDG_RUNTIME_DIR": f"{self.work}/{home}/run",
               "R2_ACCESS_KEY_ID": "k", "R2_SECRET_ACCESS_KEY": "s", "R2_REGION_NAME": "us-east-1", "R2_BUCKET": BUCKET,
               "R2_ENDPOINT": f"http://127.0.0.1:{PORT}"}
        done = subprocess.run([DSFS, *arguments], env=env, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"bench-tree: dsfs {' '.join(arguments)}: {done.stderr}")
        return done.stdout

    def mount(self, home):
        self.dsfs(home, "mount", f"{self.work}/{home}/mnt")
        self.pid = json.loads(self.dsfs(home, "status", "--json"))["mounts"][0]["pid"]
        return f"{self.work}/{home}/mnt"

    def umount(self, home):
        self.dsfs(home, "umount", f"{self.work}/{home}/mnt")

    def timed(self, what, command, pid=None):
        """Runs a shell command and tells what it cost whom."""
        pid = pid or self.pid
        requests, own, server, began = self.requests(), cpu_seconds(pid), cpu_seconds(self.server.pid), time.monotonic()
        said = subprocess.run(command, shell=True, capture_output=True, text=True, check=True).stdout.strip()
        took = time.monotonic() - began
        print(f"{what:<44} {took:8.2f} s   client CPU {cpu_seconds(pid) - own:6.2f} s   server CPU {cpu_seconds(self.server.pid) - server:6.2f} s"
              f"   {self.requests() - requests:6} requests   peak RSS {peak_rss_mib(pid):5.0f} MiB   {said}", flush=True)
        return took

    def close(self):
        self.server.kill()
        self.server.join()
        shutil.rmtree(self.work, ignore_errors=True)


def million():
    """1 000 000 objects: 200 000 in `flat`, 3 in `small`, the rest in 800 directories."""
    keys = [f"datasets/big/flat/{n:07}.bin" for n in range(200_000)]
    keys += [f"datasets/big/tree/{d // 40:02}/{d:03}/{n:04}.bin" for d in range(800) for n in range(1000)]
    keys += [f"datasets/big/small/{n}" for n in range(3)] + ["datasets/big/data.jsonl", "datasets/other/a"]
    run = Run(keys)
    mnt = run.mount("a")
    run.timed("first ls of the datasets", f"ls {mnt} | wc -l")
    run.timed("first ls of the large dataset", f"ls {mnt}/big | wc -l")
    run.timed("first ls of 3 entries in it", f"ls {mnt}/big/small | wc -l")
    run.timed("first ls of 1000 entries in it", f"ls {mnt}/big/tree/07/280 | wc -l")
    run.timed("ls -f of 200 000 entries, cold", f"ls -f {mnt}/big/flat | wc -l")
    run.timed("find, cold", f"find {mnt}/big | wc -l")
    run.timed("find, warm", f"find {mnt}/big | wc -l")
    run.timed("find -size +0 (stat of each), warm", f"find {mnt}/big -size +0 | wc -l")
    run.umount("a")
    began = time.monotonic()
    run.mount("a")
    subprocess.run(f"ls {mnt}/big/small", shell=True, check=True, capture_output=True)
    print(f"remount, to the end of an ls: {time.monotonic() - began:.2f} s")
    run.timed("find after the remount", f"find {mnt}/big | wc -l")
    run.umount("a")
    run.close()


def committed():
    """100 000 files of a commit, in 100 directories."""
    run = Run(["datasets/other/a"])
    mnt = run.mount("a")
    for d in range(100):
        os.makedirs(f"{mnt}/run/{d:02}")
        for n in range(1000):
            with open(f"{mnt}/run/{d:02}/{n:04}", "wb") as f:
                f.write(BODY)
    began = time.monotonic()
    run.dsfs("a", "commit", "run")
    print(f"commit of 100 000 files: {time.monotonic() - began:.1f} s")
    run.umount("a")
    env = f"HOME={run.work}/c R2_ACCESS_KEY_ID=k R2_SECRET_ACCESS_KEY=s R2_REGION_NAME=us-east-1 R2_BUCKET={BUCKET} R2_ENDPOINT=http://127.0.0.1:{PORT}"
    for delay in 0, 50:
        run.requests(f"?delay_ms={delay}")
        home = f"b{delay}"
        mnt = run.mount(home)
        first = run.timed(f"find of what was committed, cold, {delay} ms", f"find {mnt}/run | wc -l")
        run.umount(home)
        listing = run.timed(f"listing it: dsfs r2 list, {delay} ms", f"{env} {DSFS} r2 list datasets/run/ | wc -l", run.server.pid)
        print(f"find in {first / listing:.2f} of the time that listing takes")
    run.close()


def rclone():
    """50 000 entries in one directory."""
    run = Run([f"datasets/big/{n:07}.bin" for n in range(50_000)])
    mnt = run.mount("a")
    run.timed("dsfs: find, cold", f"find {mnt}/big | wc -l")
    run.timed("dsfs: find, warm", f"find {mnt}/big | wc -l")
    run.timed("dsfs: ls -l, warm", f"ls -l {mnt}/big | wc -l")
    run.umount("a")
    mnt = f"{run.work}/rclone"
    os.makedirs(mnt)
    remote = f":s3,provider=Other,access_key_id=k,secret_access_key=s,endpoint='http://127.0.0.1:{PORT}':{BUCKET}/datasets"
    client = subprocess.Popen([RCLONE, "mount", remote, mnt, "--config", "/dev/null", "--read-only", "--cache-dir", f"{run.work}/cache"])
    while not os.path.ismount(mnt):
        time.sleep(0.02)
    run.timed("rclone mount: find, cold", f"find {mnt}/big | wc -l", client.pid)
    run.timed("rclone mount: find, warm", f"find {mnt}/big | wc -l", client.pid)
    run.timed("rclone mount: ls -l, warm", f"ls -l {mnt}/big | wc -l", client.pid)
    client.terminate()
    client.wait()
    run.close()


if __name__ == "__main__":
    named = sys.argv[1:] or ["million", "committed", "rclone"]
    for name in named:
        print(f"-- {name}: {globals()[name].__doc__}")
        globals()[name]()
