"""Launch files: what they say, and what is said about wrong ones."""

import subprocess

import pytest
from standins import ROOT

from bert_jax.cli import UserError
from bert_jax.planning import launch_file as launch_file_lib


def test_reads_keys_defaults_and_flat_overrides(launch_file):
    launch = launch_file_lib.read(
        launch_file("tpu", overrides={"batch_size": 1024, "mesh": {"fsdp": 4}}, env={"A": 1})
    )
    assert (launch.target, launch.project, launch.zone) == ("tpu", "my-project", "us-west4-a")
    assert (launch.topology, launch.num_slices) == ("v5e:4x4", 1)
    assert launch.runtime_version == "v2-alpha-tpuv5-lite"
    assert (launch.spot, launch.provisioning, launch.commit) == (False, "queued", "HEAD")
    assert launch.config_flags == (
        "--config=configs/bert_base.py",
        "--config.data_dir=gs://bucket/data",
        "--config.batch_size=1024",
        "--config.mesh.fsdp=4",
    )


@pytest.mark.parametrize(
    ("accelerator_type", "topology", "runtime_version"),
    [
        ("v4-32", "v4:2x2x4", "tpu-ubuntu2204-base"),
        ("v5litepod-256", "v5e:16x16", "v2-alpha-tpuv5-lite"),
        ("v5p-8", "v5p:2x2x1", "v2-alpha-tpuv5"),
        ("v6e-8", "v6e:2x4", "v2-alpha-tpuv6e"),
    ],
)
def test_topology_and_software_of_an_accelerator_type(
    launch_file, accelerator_type, topology, runtime_version
):
    launch = launch_file_lib.read(launch_file("tpu", accelerator_type=accelerator_type))
    assert (launch.topology, launch.runtime_version) == (topology, runtime_version)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"workdri": "x"}, r"unknown key 'workdri' \(did you mean 'workdir'\?\)"),
        ({"project": None, "zone": None}, "missing key 'project', missing key 'zone'"),
        ({"cluster": "x"}, "unknown key 'cluster'"),
        ({"target": "tpus"}, "has target 'tpus': expected one of tpu, gke, slurm, dataflow"),
        ({"target": None}, "has no target"),
        ({"accelerator_type": "v5e-16"}, "'v5e-16' is unknown: expected v4-N, v5litepod-N"),
        ({"accelerator_type": "v5litepod-12"}, "no slice 'v5litepod-12'.*1, 4, 8, 16"),
        ({"num_slices": 0}, "num_slices is 0: expected a whole number, at least 1"),
        ({"num_slices": "2"}, "num_slices is '2': expected a whole number"),
        ({"max_restarts": True}, "max_restarts is True: expected a whole number, at least 0"),
        ({"spot": "yes"}, "spot is 'yes': expected true or false"),
        ({"workdir": ""}, "workdir is '': expected text that is not empty"),
        ({"create_flags": "--reserved"}, "create_flags is '--reserved': expected a list"),
        ({"overrides": 3}, "overrides is 3: expected a table"),
        (
            {"extras": ["wandb", "wanbd"]},
            "extras has wanbd: expected one of hf, tensorboard, wandb",
        ),
        ({"env": {"A-B": "1"}}, "'A-B' is not the name of a variable"),
        ({"name": "Bert base"}, "name is 'Bert base': expected up to 40 of a-z"),
        ({"provisioning": "reserved"}, "provisioning is 'reserved'"),
        ({"provisioning": "direct", "num_slices": 2}, "2 slices need provisioning"),
    ],
)
def test_mistakes_are_named(launch_file, changes, message):
    with pytest.raises(UserError, match=message) as error:
        launch_file_lib.read(launch_file("tpu", **changes))
    assert str(error.value).startswith("launch file /")


def test_a_file_that_is_missing_or_not_toml(tmp_path):
    with pytest.raises(UserError, match=r"none\.toml cannot be read: No such file"):
        launch_file_lib.read(str(tmp_path / "none.toml"))
    (tmp_path / "bad.toml").write_text("zone = us-west4-a")
    with pytest.raises(UserError, match=r"bad\.toml is not TOML: .*line 1"):
        launch_file_lib.read(str(tmp_path / "bad.toml"))


@pytest.mark.parametrize("path", sorted(ROOT.glob("launch/*.toml")), ids=lambda p: p.stem)
def test_examples_are_good(path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    launch_file_lib.main([str(path)])
    assert "TARGET=" in capsys.readouterr().out


def test_wrong_fields_of_the_config_are_found_before_anything_starts(launch_file, monkeypatch):
    monkeypatch.chdir(ROOT)
    path = launch_file("tpu", overrides={"mesh": {"fdsp": 4}})
    with pytest.raises(
        UserError, match=r"no field 'mesh\.fdsp'; did you mean --config\.mesh\.fsdp"
    ):
        launch_file_lib.main([path])


def test_weights_and_biases_is_installed_where_it_is_used(launch_file, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    overrides = {"wandb_project": "bert"}
    with pytest.raises(UserError, match=r'add extras = \["wandb"\]'):
        launch_file_lib.main([launch_file("tpu", overrides=overrides)])
    launch_file_lib.main([launch_file("tpu", overrides=overrides, extras=["wandb"])])
    assert "EXTRAS=tpu,gcs,wandb\n" in capsys.readouterr().out


def test_a_secrets_file_that_others_may_read_is_refused(launch_file, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    secrets = tmp_path / "secrets"
    with pytest.raises(UserError, match=r"secrets_file .* does not exist"):
        launch_file_lib.main([launch_file("tpu", secrets_file=str(secrets))])
    secrets.write_text("HF_TOKEN=x\n")
    secrets.chmod(0o640)
    with pytest.raises(UserError, match=r"others may read .* chmod 600"):
        launch_file_lib.main([launch_file("tpu", secrets_file=str(secrets))])


def test_shell_variables_survive_the_shell(launch_file):
    odd = """gs://bucket/it's "my" $HOME `run` é"""
    launch = launch_file_lib.read(
        launch_file("tpu", workdir=odd, env={"A": odd}, overrides={"init_from": odd})
    )
    script = launch_file_lib.shell_variables(launch) + '\nprintf "%s\\0" "$WORKDIR" "${ENV[@]}" '
    script += '"${PRETRAIN[@]}"'
    words = subprocess.run(["bash", "-euc", script], capture_output=True, check=True, text=True)
    assert words.stdout.split("\0")[:-1] == [
        odd,
        f"A={odd}",
        "--config=configs/bert_base.py",
        "--config.data_dir=gs://bucket/data",
        f"--config.init_from={odd}",
        f"--workdir={odd}",
    ]
