"""What infra/ declares: every file parses, nothing starts without a password, nothing is open, nothing is told."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from configparser import ConfigParser
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
COMPOSE = yaml.safe_load((INFRA / "compose.yaml").read_text(encoding="utf-8"))
SECRET = re.compile(r"PASSWORD|AUTH_STRING|SECRET")
WORKER_NEEDS = {
    "PREFECT_API_URL": "http://server/api",
    "PREFECT_API_AUTH_STRING": "team:long-enough",
    "MLFLOW_TRACKING_URI": "http://server",
    "MLFLOW_TRACKING_USERNAME": "team",
    "MLFLOW_TRACKING_PASSWORD": "long-enough",
    "UNDERSTUDY_CLONE": "/nonexistent/clone",
}
NEEDS = {
    "start-prefect": {
        "PREFECT_SERVER_API_AUTH_STRING": "team:long-enough",
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": "postgresql+asyncpg://host/database",
    },
    "start-mlflow": {
        "MLFLOW_AUTH_ADMIN_PASSWORD": "long-enough-it-is",
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "secret",
        "MLFLOW_BACKEND_STORE_URI": "postgresql://host/database",
        "MLFLOW_ARTIFACTS_DESTINATION": "s3://bucket",
    },
    "start-worker": WORKER_NEEDS,
}
"""What a start script refuses to start without."""


def manifests() -> list[dict[str, Any]]:
    files = sorted((INFRA / "kubernetes").glob("*.yaml"))
    return [part for file in files for part in yaml.safe_load_all(file.read_text(encoding="utf-8"))]


def pods() -> list[tuple[str, dict[str, Any]]]:
    return [
        (part["metadata"]["name"], part["spec"]["template"]["spec"])
        for part in manifests()
        if part["kind"] in ("Deployment", "StatefulSet")
    ]


def start(script: str, environment: dict[str, str], *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run a start script where `python` and `git` only say how they were called.

    A copy of it, in a clone without the environment that it would prefer to what PATH names.
    """
    place = Path(environment["TMPDIR"]) / "clone" / "infra"
    place.mkdir(parents=True, exist_ok=True)
    shutil.copy(INFRA / script, place)
    return subprocess.run(
        [str(place / script), *arguments], env=environment, capture_output=True, text=True, timeout=20
    )


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """An environment in which python and git echo what they are asked to do."""
    for name in ("python", "git"):
        program = tmp_path / name
        program.write_text(f'#!/bin/sh\necho {name} "$@"\nenv\n')
        program.chmod(0o755)
    return {"PATH": f"{tmp_path}{os.pathsep}{os.defpath}", "TMPDIR": str(tmp_path)}


@pytest.mark.parametrize(
    ("script", "missing"), [(script, name) for script, names in NEEDS.items() for name in names]
)
@pytest.mark.parametrize("empty", [False, True], ids=["unset", "empty"])
def test_a_script_refuses_without_a_secret_or_a_place(
    bare: dict[str, str], script: str, missing: str, empty: bool
):
    environment = bare | {name: value for name, value in NEEDS[script].items() if name != missing}
    done = start(script, environment | ({missing: ""} if empty else {}), "gpu")
    assert done.returncode == 2
    assert missing in done.stderr
    assert "python" not in done.stdout


@pytest.mark.parametrize("auth", ["long-enough-but-no-user", ":long-enough", "team:", "team:short"])
def test_prefect_wants_a_user_and_a_real_password(bare: dict[str, str], auth: str):
    done = start("start-prefect", bare | NEEDS["start-prefect"] | {"PREFECT_SERVER_API_AUTH_STRING": auth})
    assert done.returncode == 2
    assert "user:password" in done.stderr


@pytest.mark.parametrize("script", ["start-prefect", "start-mlflow"])
def test_a_server_listens_on_the_loopback_unless_told_otherwise(bare: dict[str, str], script: str):
    environment = bare | NEEDS[script]
    assert "--host 127.0.0.1 " in start(script, environment).stdout
    assert "--host 10.0.0.5 " in start(script, environment | {"UNDERSTUDY_BIND": "10.0.0.5"}).stdout


def test_telemetry_is_off_whatever_the_environment_says(bare: dict[str, str]):
    loud = {
        "DO_NOT_TRACK": "0",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "true",
        "MLFLOW_DISABLE_TELEMETRY": "false",
    }
    prefect = start("start-prefect", bare | NEEDS["start-prefect"] | loud).stdout.splitlines()
    assert {"PREFECT_SERVER_ANALYTICS_ENABLED=false", "DO_NOT_TRACK=1"} <= set(prefect)
    mlflow = start("start-mlflow", bare | NEEDS["start-mlflow"] | loud).stdout.splitlines()
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false", "MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false"}
    assert {"MLFLOW_DISABLE_TELEMETRY=true", "DO_NOT_TRACK=1", *quiet} <= set(mlflow)


def test_mlflows_users_are_in_its_database_and_nobody_else_reads_where(bare: dict[str, str]):
    uri = "postgresql://team:p%40ss@host/database"
    needs = NEEDS["start-mlflow"] | {"MLFLOW_BACKEND_STORE_URI": uri}
    lines = start("start-mlflow", bare | needs).stdout.splitlines()
    file = Path(next(line.partition("=")[2] for line in lines if line.startswith("MLFLOW_AUTH_CONFIG_PATH=")))
    assert file.stat().st_mode & 0o077 == 0
    config = ConfigParser()
    config.read(file)
    assert config["mlflow"]["database_uri"] == uri
    assert "password" not in {key for key in config["mlflow"] if key != "database_uri"}
    assert "--app-name basic-auth" in lines[0]
    assert uri not in lines[0], "arguments are for all to see"


def test_a_list_of_mlflows_names_leaves_out_neither_this_machine_nor_composes_workers(bare: dict[str, str]):
    needs = bare | NEEDS["start-mlflow"] | {"UNDERSTUDY_MLFLOW_PORT": "5001"}

    def hosts(given: dict[str, str]) -> list[str]:
        lines = start("start-mlflow", needs | given).stdout.splitlines()
        return [line.partition("=")[2] for line in lines if line.startswith("MLFLOW_SERVER_ALLOWED_HOSTS=")]

    assert hosts({"MLFLOW_SERVER_ALLOWED_HOSTS": "server:5001"}) == [
        "server:5001,127.0.0.1:5001,localhost:5001"
    ]
    assert hosts({}) == []  # MLflow's own list: this machine and private addresses
    in_compose = COMPOSE["services"]["mlflow"]["environment"]["MLFLOW_SERVER_ALLOWED_HOSTS"]
    assert in_compose.startswith("mlflow:5000,")


def test_the_leases_of_prefects_server_outlive_it(bare: dict[str, str], tmp_path: Path):
    """In a folder that is kept, without the lock of a server that was killed."""
    from prefect.server.concurrency.lease_storage import get_concurrency_lease_storage
    from prefect.settings import PREFECT_HOME, PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE, temporary_settings

    leases = tmp_path / "home" / "concurrency_leases"
    leases.mkdir(parents=True)
    (leases / "expirations.lock").write_text("7")
    (leases / "expirations.json").write_text("{}")
    home = {"PREFECT_HOME": str(leases.parent)}
    lines = start("start-prefect", bare | NEEDS["start-prefect"] | home).stdout.splitlines()
    name = "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE="
    module = next(line.removeprefix(name) for line in lines if line.startswith(name))
    chosen = {PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE: module, PREFECT_HOME: leases.parent}
    with temporary_settings(chosen):
        assert get_concurrency_lease_storage().storage_path == leases
    assert [file.name for file in leases.iterdir()] == ["expirations.json"]

    image = (INFRA / "Dockerfile").read_text(encoding="utf-8")
    assert "PREFECT_HOME=/clone/prefect" in image
    assert COMPOSE["services"]["prefect"]["volumes"] == ["prefect:/clone"]
    assert "prefect" in COMPOSE["volumes"]
    (pod,) = (pod for name, pod in pods() if name == "prefect")
    (mount,) = pod["containers"][0]["volumeMounts"]
    (volume,) = pod["volumes"]
    assert mount == {"name": volume["name"], "mountPath": "/clone"}
    claims = [part["metadata"]["name"] for part in manifests() if part["kind"] == "PersistentVolumeClaim"]
    assert claims == [volume["persistentVolumeClaim"]["claimName"]]


def test_prefects_pages_lie_where_its_server_may_write(bare: dict[str, str], tmp_path: Path):
    """By default it writes them into its own library: root's in the image, read-only under systemd."""
    home = tmp_path / "home"
    needs = bare | NEEDS["start-prefect"]
    lines = start("start-prefect", needs | {"PREFECT_HOME": str(home)}).stdout.splitlines()
    assert f"PREFECT_SERVER_UI_STATIC_DIRECTORY={home}/ui" in lines
    lines = start("start-prefect", needs | {"HOME": str(home)}).stdout.splitlines()
    assert f"PREFECT_SERVER_UI_STATIC_DIRECTORY={home}/.prefect/ui" in lines


@pytest.mark.parametrize("queue", ["gpu", "cpu", "coordinator"])
def test_a_worker_takes_one_run_of_its_queue_at_a_time(bare: dict[str, str], tmp_path: Path, queue: str):
    clone = tmp_path / "of-the-worker"
    clone.mkdir()
    (clone / "dvc.yaml").touch()
    places = {"UNDERSTUDY_CLONE": str(clone), "CUDA_VISIBLE_DEVICES": "3"}
    *_, began = (
        line
        for line in start("start-worker", bare | WORKER_NEEDS | places, queue).stdout.splitlines()
        if line.startswith("python")
    )
    assert f"--pool understudy --type process --work-queue {queue} --limit 1 --name" in began
    assert began.endswith(f"-{queue}-3")


def test_a_clone_that_was_interrupted_is_not_in_the_way_of_the_next(bare: dict[str, str], tmp_path: Path):
    """A worker whose git is killed half-way, and then another one."""
    clone, half = tmp_path / "of-the-worker", tmp_path / "of-the-worker.new"
    needs = (
        bare | WORKER_NEEDS | {"UNDERSTUDY_CLONE": str(clone), "UNDERSTUDY_REPOSITORY": "git@host:project"}
    )
    git = tmp_path / "git"
    git.write_text('#!/bin/sh\nfor last; do :; done\nmkdir "$last" && touch "$last/half"; kill -9 $$\n')
    done = start("start-worker", needs, "gpu")
    assert done.returncode
    assert "python" not in done.stdout
    assert not clone.exists()
    git.write_text(
        '#!/bin/sh\necho git "$@"\nfor last; do :; done\nmkdir "$last" && touch "$last/dvc.yaml"\n'
    )
    cloned, began, *_ = start("start-worker", needs, "cpu").stdout.splitlines()
    assert cloned == f"git clone --quiet git@host:project {half}"
    assert began.startswith("python -m prefect worker start")
    assert [file.name for file in clone.iterdir()] == ["dvc.yaml"]
    assert not half.exists()


@pytest.mark.parametrize("queue", ["gpu", "cpu"])
def test_a_worker_whose_gpu_computes_nothing_takes_no_runs(bare: dict[str, str], tmp_path: Path, queue: str):
    """It is the one that is always free: it would take, and fail, every run."""
    (tmp_path / "of-the-worker").mkdir()
    (tmp_path / "of-the-worker" / "dvc.yaml").touch()
    # checks with the real one, and echoes the rest
    real = f'#!/bin/sh\n[ "$2" != tasks.check_device ] || exec "{sys.executable}" "$@"\necho python "$@"\n'
    (tmp_path / "python").write_text(real)
    places = {"UNDERSTUDY_CLONE": str(tmp_path / "of-the-worker"), "PYTHONPATH": str(INFRA.parent)}
    done = start("start-worker", bare | WORKER_NEEDS | places | {"UNDERSTUDY_DEVICE": "meta-analysis"}, queue)
    if queue == "cpu":
        assert "worker start" in done.stdout
    else:
        assert done.returncode
        assert "this worker takes no runs: UNDERSTUDY_DEVICE is 'meta-analysis'" in done.stderr
        assert "worker start" not in done.stdout


@pytest.mark.parametrize("queue", [(), ("quantum",)])
def test_a_worker_of_no_queue_is_refused(bare: dict[str, str], queue: tuple[str, ...]):
    assert (
        "usage: start-worker gpu|cpu|coordinator" in start("start-worker", bare | WORKER_NEEDS, *queue).stderr
    )


def test_the_example_environment_has_every_setting_and_no_value():
    text = (INFRA / ".env.example").read_text(encoding="utf-8")
    given = dict(line.split("=", 1) for line in text.splitlines() if line and not line.startswith("#"))
    numbers = set(re.findall(r"^#([A-Z_]+)=\d+$", text, re.MULTILINE))  # an empty one would be no number
    assert not any(given.values())
    assert {name for names in NEEDS.values() for name in names} - {"UNDERSTUDY_CLONE"} <= set(given)
    used = set(re.findall(r"\$\{(\w+)", (INFRA / "compose.yaml").read_text(encoding="utf-8")))
    assert used <= set(given) | numbers


def test_all_flows_but_that_of_a_stage_are_of_the_clone_whose_params_they_read():
    """By a pull step, which returns the clone's folder."""
    deployments = yaml.safe_load((INFRA / "prefect.yaml").read_text(encoding="utf-8"))["deployments"]
    steps = {each["name"]: each.get("pull", []) for each in deployments}
    assert [name for name, pull in steps.items() if not pull] == ["on-worker"]
    for (step,) in filter(None, steps.values()):
        (path,) = step
        module, _, function = path.rpartition(".")
        assert callable(getattr(import_module(module), function))


def test_the_environment_file_is_not_for_git():
    assert subprocess.run(["git", "check-ignore", "-q", "infra/.env"], cwd=ROOT).returncode == 0


def test_no_secret_of_compose_has_a_default():
    text = (INFRA / "compose.yaml").read_text(encoding="utf-8")
    for name, fallback in re.findall(r"\$\{(\w+)([^}]*)\}", text):
        if SECRET.search(name) or name in ("AWS_ACCESS_KEY_ID", "MLFLOW_TRACKING_USERNAME"):
            assert fallback.startswith(":?"), name
    for service, about in COMPOSE["services"].items():
        for name, value in about.get("environment", {}).items():
            if SECRET.search(name):
                assert str(value).startswith("${"), f"{service}: {name} stands in the file"


@pytest.mark.parametrize("service", COMPOSE["services"])
def test_a_service_of_compose_asks_for_a_password(service: str):
    about = COMPOSE["services"][service]
    if service == "postgres":
        assert "POSTGRES_PASSWORD" in about["environment"]
        assert "POSTGRES_HOST_AUTH_METHOD" not in about["environment"]
    else:
        script = Path(about["command"][0]).name
        given = set(about["environment"]) | {"UNDERSTUDY_CLONE"}  # of the image
        assert NEEDS[script].keys() <= given


def test_compose_publishes_on_the_loopback_and_only_what_has_a_password():
    published = {name: about["ports"] for name, about in COMPOSE["services"].items() if "ports" in about}
    assert set(published) == {"prefect", "mlflow"}
    for ports in published.values():
        assert all(port.startswith("${UNDERSTUDY_BIND:-127.0.0.1}:") for port in ports)


@pytest.mark.parametrize("service", COMPOSE["services"])
def test_a_log_of_compose_does_not_fill_the_disk(service: str):
    assert COMPOSE["services"][service]["logging"] == {
        "driver": "json-file",
        "options": {"max-size": "50m", "max-file": "5"},
    }


def test_a_gpu_worker_of_compose_reserves_its_gpu_and_takes_nothing_else():
    assert COMPOSE["services"]["gpu0"]["environment"]["UNDERSTUDY_DEVICE"] == "cuda"
    reserved = COMPOSE["services"]["gpu0"]["deploy"]["resources"]["reservations"]["devices"]
    assert reserved == [{"driver": "nvidia", "device_ids": ["0"], "capabilities": ["gpu"]}]


def test_every_worker_has_a_clone_of_its_own():
    clones = [about["volumes"] for about in COMPOSE["services"].values() if "start-worker" in str(about)]
    assert len({str(volumes) for volumes in clones}) == len(clones) == 3
    sets = {part["metadata"]["name"]: part["spec"] for part in manifests() if part["kind"] == "StatefulSet"}
    workers = {name: spec for name, spec in sets.items() if name.endswith("-worker")}
    assert set(workers) == {"gpu-worker", "cpu-worker", "coordinator-worker"}
    for spec in workers.values():
        assert spec["volumeClaimTemplates"][0]["metadata"]["name"] == "clone"
        (container,) = spec["template"]["spec"]["containers"]
        assert {"name": "clone", "mountPath": "/clone"} in container["volumeMounts"]


@pytest.mark.parametrize(("name", "pod"), pods(), ids=lambda value: value if isinstance(value, str) else "")
def test_a_pod_has_its_secrets_from_the_secret(name: str, pod: dict[str, Any]):
    (container,) = pod["containers"]
    given = {entry["name"]: entry for entry in container["env"]}
    for variable, entry in given.items():
        if SECRET.search(variable):
            assert entry["valueFrom"]["secretKeyRef"]["name"] == "understudy"
    if name != "postgres":
        script = Path(container["command"][0]).name
        assert NEEDS[script].keys() <= given.keys() | {"UNDERSTUDY_CLONE"}
        assert pod["securityContext"]["runAsNonRoot"]
    assert pod["automountServiceAccountToken"] is False


def test_kubernetes_opens_nothing_to_the_world_and_needs_its_own_names():
    assert all(
        part["spec"].get("type", "ClusterIP") == "ClusterIP"
        for part in manifests()
        if part["kind"] == "Service"
    )
    assert not any(part["kind"] in ("Ingress", "Secret") for part in manifests())
    files = {file.name for file in (INFRA / "kubernetes").glob("*.yaml")} - {"kustomization.yaml"}
    kustomization = next(part for part in manifests() if part["kind"] == "Kustomization")
    assert set(kustomization["resources"]) == files
    names = {part["metadata"]["name"] for part in manifests() if part["kind"] == "Service"}
    for match in re.findall(r"http://(\w+):", json.dumps(manifests())):
        assert match in names | {"127.0.0.1", "localhost"}


def test_a_gpu_pod_asks_for_a_gpu_and_takes_nothing_else():
    (gpu,) = (pod for name, pod in pods() if name == "gpu-worker")
    (container,) = gpu["containers"]
    assert container["resources"]["requests"]["nvidia.com/gpu"] == 1
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 1}
    assert {"name": "UNDERSTUDY_DEVICE", "value": "cuda"} in container["env"]


@pytest.mark.parametrize(("name", "pod"), pods(), ids=lambda value: value if isinstance(value, str) else "")
def test_a_pod_says_what_it_needs(name: str, pod: dict[str, Any]):
    (container,) = pod["containers"]
    assert {"cpu", "memory"} <= container["resources"]["requests"].keys(), name


def test_prefects_pod_has_ten_minutes_for_its_tables():
    (pod,) = (pod for name, pod in pods() if name == "prefect")
    (container,) = pod["containers"]
    startup = container["startupProbe"]
    assert startup["failureThreshold"] * startup.get("periodSeconds", 10) == 600
    assert container["readinessProbe"]["httpGet"]["path"] == "/api/ready"


def test_the_pool_template_uses_every_variable_and_asks_for_gpus():
    template = json.loads((INFRA / "kubernetes" / "pool.json").read_text(encoding="utf-8"))
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(template["job_configuration"])))
    assert used == set(template["variables"]["properties"])
    (container,) = template["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": "{{ gpus }}"}
    # a coordinator that held the one GPU would wait for its own stage for ever
    assert template["variables"]["properties"]["gpus"]["default"] == 0
    secrets = {entry["name"] for entry in container["env"] if "valueFrom" in entry}
    assert {"UNDERSTUDY_CHECKPOINTS", "MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY"} <= secrets
    assert all("value" not in entry for entry in container["env"] if SECRET.search(entry["name"]))
    (shm,) = (mount["name"] for mount in container["volumeMounts"] if mount["mountPath"] == "/dev/shm")
    volumes = template["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]["volumes"]
    assert {"name": shm, "emptyDir": {"medium": "Memory", "sizeLimit": "8Gi"}} in volumes


def test_the_docker_pool_uses_every_variable_asks_for_a_gpu_and_holds_no_secret():
    text = (INFRA / "docker" / "pool.json").read_text(encoding="utf-8")
    template = json.loads(text)
    variables, job = template["variables"]["properties"], template["job_configuration"]
    assert set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(job))) == set(variables)
    (gpu,) = variables["devices"]["default"]
    assert (gpu["Driver"], gpu["Count"], gpu["Capabilities"]) == ("nvidia", 1, [["gpu"]])
    assert job["container_create_kwargs"]["shm_size"] == "8g"
    (entrypoint,) = job["container_create_kwargs"]["entrypoint"]
    assert (ROOT / Path(entrypoint).relative_to("/opt/understudy")).is_file()
    assert not SECRET.search(text)


def test_a_container_begins_with_secrets_and_a_clone_or_says_what_is_missing(tmp_path: Path):
    """The pool's entrypoint, run as Docker runs it."""
    origin, clone, file = tmp_path / "origin", tmp_path / "clone", tmp_path / "secrets"
    subprocess.run(["git", "init", "-q", str(origin)], check=True)
    (origin / "dvc.yaml").write_text("stages: {}\n")
    for command in (["add", "."], ["-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "first"]):
        subprocess.run(["git", "-C", str(origin), *command], check=True)

    command = [
        INFRA / "docker" / "start-run",
        "sh",
        "-c",
        'echo "$MLFLOW_TRACKING_PASSWORD $UNDERSTUDY_CLONE"; read _',
    ]
    places = {"UNDERSTUDY_CLONE": str(clone), "UNDERSTUDY_SECRETS": str(file)}
    handed_over = {name: WORKER_NEEDS[name] for name in ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING")}
    environment = {"PATH": os.environ["PATH"]} | places | handed_over

    def begun() -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            command, env=environment, input="\n", capture_output=True, text=True, check=False
        )

    done = begun()
    assert done.returncode == 2
    assert "mount infra/.env, filled in, there" in done.stderr
    # as infra/.env.example has it: what is empty takes nothing away
    file.write_text("PREFECT_API_URL=\nMLFLOW_TRACKING_URI=http://server\nMLFLOW_TRACKING_USERNAME=team\n")
    for line, missing in (
        ("MLFLOW_TRACKING_PASSWORD=of-the-test\n", "MLFLOW_TRACKING_PASSWORD"),
        (f"UNDERSTUDY_REPOSITORY={origin}\n", "UNDERSTUDY_REPOSITORY"),
    ):
        assert f"{missing}: is not set" in begun().stderr
        with file.open("a") as more:
            more.write(line)
    Path(f"{clone}-1.new").mkdir()  # of a container that was killed as it cloned
    for _ in range(2):
        done = begun()
        assert (done.returncode, done.stdout) == (0, f"of-the-test {clone}-1\n"), done.stderr
        assert Path(f"{clone}-1", "dvc.yaml").is_file()
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True) as coordinator:
        assert coordinator.stdout is not None
        assert coordinator.stdout.readline() == f"of-the-test {clone}-1\n"
        assert begun().stdout == f"of-the-test {clone}-2\n", "its stage has a clone of its own"
        coordinator.communicate("\n")
    assert begun().stdout == f"of-the-test {clone}-1\n"


@pytest.mark.parametrize("unit", sorted((INFRA / "systemd").glob("*.service")), ids=lambda unit: unit.name)
def test_a_unit_calls_a_start_script_and_holds_no_secret(unit: Path):
    parsed = ConfigParser(strict=False, interpolation=None)
    parsed.optionxform = str  # type: ignore[assignment,method-assign]
    parsed.read_string(unit.read_text(encoding="utf-8"))
    service = parsed["Service"]
    script, *queue = shlex.split(service["ExecStart"].removeprefix("/opt/understudy/infra/"))
    assert script in NEEDS
    assert service["User"] == "understudy"
    assert service["Restart"] == "always"
    assert service["EnvironmentFile"].startswith("/etc/understudy/")
    assert not SECRET.search(unit.read_text(encoding="utf-8"))
    if script == "start-worker":
        assert queue[0] in ("gpu", "cpu", "coordinator")
        assert service["KillMode"] == "control-group"
        assert service["OOMPolicy"] == "continue", "a decoder dies alone"
        assert service["ReadWritePaths"] == "-/srv/understudy", "UNDERSTUDY_CHECKPOINTS of .env.example"


def test_a_gpu_unit_sees_the_gpu_of_its_name_takes_nothing_else_and_has_a_clone_of_its_own():
    unit = (INFRA / "systemd" / "understudy-worker@.service").read_text(encoding="utf-8")
    assert "Environment=UNDERSTUDY_DEVICE=cuda\n" in unit
    assert "ExecStartPre=+-/usr/bin/nvidia-modprobe -u -c 0\n" in unit
    assert "Environment=CUDA_VISIBLE_DEVICES=%i\n" in unit
    assert "Environment=UNDERSTUDY_CLONE=%S/understudy/gpu-%i\n" in unit


def test_the_image_holds_no_secret_and_copies_what_is_there():
    dockerfile = (INFRA / "Dockerfile").read_text(encoding="utf-8")
    assert not SECRET.search(dockerfile)
    copied = [
        word for line in re.findall(r"^COPY (.+) \S+$", dockerfile, re.MULTILINE) for word in line.split()
    ]
    assert all((ROOT / name).exists() for name in copied)
    ignored = (INFRA / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert ignored[0] == "*"
    assert {f"!{name}" for name in copied} == {line for line in ignored if line.startswith("!")}
    assert "**/.env" in ignored  # patterns begin at the root, and infra/.env holds the passwords
    assert re.search(r"^USER understudy$", dockerfile, re.MULTILINE)
