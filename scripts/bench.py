"""The measurements of scripts/bench.sh, which see. Everything it makes lies in one temporary directory."""

import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

import boto3

VENV = os.environ["DSFS_TEST_VENV"] + "/bin"
KEY, SECRET, BUCKET = "benchkey", "benchsecret", "assets"
LARGE, SMALL, MANY = 512 << 20, 1000, 10_000
PIECE = 1 << 20


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start_server(work):
    """SeaweedFS on free ports; its process and endpoint."""
    with open(f"{work}/s3.json", "w") as f:
        f.write('{"identities":[{"name":"bench","credentials":[{"accessKey":"%s","secretKey":"%s"}],'
                '"actions":["Admin","Read","Write","List","Tagging"]}]}' % (KEY, SECRET))
    os.mkdir(f"{work}/server")
    names = ["s3.port", "s3.port.grpc", "master.port", "master.port.grpc", "volume.port", "volume.port.grpc",
             "filer.port", "filer.port.grpc"]
    ports = {name: free_port() for name in names}
    argv = [f"{VENV}/weed", "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3", f"-dir={work}/server",
            "-master.volumeSizeLimitMB=1024", "-volume.max=50", f"-s3.config={work}/s3.json", "-s3.port.iceberg=0",
            "-s3.port.lance=0", *(f"-{name}={port}" for name, port in ports.items())]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return process, f"http://127.0.0.1:{ports['s3.port']}"


def fill(endpoint, work):
    """Uploads the data, and keeps a copy on the local disk: the third column."""
    s3 = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id=KEY,
                      aws_secret_access_key=SECRET)
    for _ in range(120):
        try:
            s3.create_bucket(Bucket=BUCKET)
            s3.put_object(Bucket=BUCKET, Key="ready", Body=b"1")
            break
        except Exception:  # not up yet, or the bucket is not usable yet
            time.sleep(0.5)
    local = f"{work}/native"
    os.makedirs(f"{local}/large")
    with open(f"{local}/large/data.bin", "wb") as f:
        for _ in range(LARGE // PIECE):
            f.write(os.urandom(PIECE))
    s3.upload_file(f"{local}/large/data.bin", BUCKET, "datasets/large/data.bin")
    for name, count, size in [("small", SMALL, 20_000), ("many", MANY, 10)]:
        os.makedirs(f"{local}/{name}")
        for i in range(count):
            body = os.urandom(size)
            with open(f"{local}/{name}/{i:05}", "wb") as f:
                f.write(body)
            s3.put_object(Bucket=BUCKET, Key=f"datasets/{name}/{i:05}", Body=body)
    return local


def timed(work):
    started = time.monotonic()
    work()
    return time.monotonic() - started


def read_file(path):
    with open(path, "rb", buffering=0) as f:
        buffer = bytearray(PIECE)
        while f.readinto(buffer):
            pass


def read_all(directory):
    for name in sorted(os.listdir(directory)):
        read_file(f"{directory}/{name}")


def list_long(directory):
    subprocess.run(["ls", "-l", directory], stdout=subprocess.DEVNULL, check=True)


ROWS = [
    ("sequential read, cold (MB/s)", lambda m: LARGE / 1e6 / timed(lambda: read_file(f"{m}/large/data.bin"))),
    ("the same, warm (MB/s)", lambda m: LARGE / 1e6 / timed(lambda: read_file(f"{m}/large/data.bin"))),
    (f"{SMALL} small files, cold (files/s)", lambda m: SMALL / timed(lambda: read_all(f"{m}/small"))),
    ("the same, warm (files/s)", lambda m: SMALL / timed(lambda: read_all(f"{m}/small"))),
    (f"ls -l of {MANY} entries, cold (s)", lambda m: timed(lambda: list_long(f"{m}/many"))),
    ("the same, warm (s)", lambda m: timed(lambda: list_long(f"{m}/many"))),
]


def mount_dsfs(endpoint, work, mnt):
    env = {**os.environ, "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "us-east-1"}
    return subprocess.Popen(["target/release/dsfs", "mount", "--foreground", "-e", endpoint, "-b", BUCKET, "--cache-dir",
                             f"{work}/cache", "--state-dir", f"{work}/state", mnt], env=env, stderr=subprocess.DEVNULL)


def mount_rclone(endpoint, work, mnt):
    env = {**os.environ, "RCLONE_CONFIG": "/dev/null", "RCLONE_CONFIG_B_TYPE": "s3", "RCLONE_CONFIG_B_PROVIDER": "Other",
           "RCLONE_CONFIG_B_ENDPOINT": endpoint, "RCLONE_CONFIG_B_ACCESS_KEY_ID": KEY,
           "RCLONE_CONFIG_B_SECRET_ACCESS_KEY": SECRET, "RCLONE_CONFIG_B_REGION": "us-east-1"}
    return subprocess.Popen([f"{VENV}/rclone", "mount", f"b:{BUCKET}/datasets", mnt, "--vfs-cache-mode", "full",
                             "--cache-dir", f"{work}/cache", "--vfs-read-chunk-streams", "16", "--vfs-read-chunk-size", "4M",
                             "--no-checksum", "--use-server-modtime", "--dir-cache-time", "1h"], env=env,
                            stderr=subprocess.DEVNULL)


def measure_mount(mount, endpoint, work):
    scratch = tempfile.mkdtemp(dir=work)
    mnt = f"{scratch}/mnt"
    os.mkdir(mnt)
    process = mount(endpoint, scratch, mnt)
    try:
        deadline = time.monotonic() + 30
        while not os.path.ismount(mnt):
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"{mount.__name__} did not mount")
            time.sleep(0.02)
        return [row(mnt) for _, row in ROWS]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        subprocess.run(["umount", "-l", mnt], stderr=subprocess.DEVNULL)
        shutil.rmtree(scratch, ignore_errors=True)


def main(repetitions):
    work = tempfile.mkdtemp(prefix="dsfs-bench-")
    server, endpoint = start_server(work)
    try:
        local = fill(endpoint, work)
        columns = {"dsfs": [], "rclone": [], "local disk": []}
        for _ in range(repetitions):
            columns["dsfs"].append(measure_mount(mount_dsfs, endpoint, work))
            columns["rclone"].append(measure_mount(mount_rclone, endpoint, work))
            columns["local disk"].append([row(local) for _, row in ROWS])
    finally:
        server.terminate()
        server.wait(60)
        shutil.rmtree(work, ignore_errors=True)
    print(f"medians of {repetitions}; the local disk is read from its page cache")
    print("| | " + " | ".join(columns) + " |\n| --- | --- | --- | --- |")
    for at, (name, _) in enumerate(ROWS):
        values = [statistics.median(run[at] for run in runs) for runs in columns.values()]
        print(f"| {name} | " + " | ".join(f"{value:.3g}" if value < 100 else f"{value:.0f}" for value in values) + " |")


main(int(sys.argv[1]))
