"""Any model in the program: chosen by name, its settings beside it, one of your own from outside the package."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

from ncml import VPSDE, Lattice, NoiseConditionalDensity, SampleableDensity
from ncml.cli import main
from ncml.densities import MADE, MAF, NCPN, CausalTransformer, TransformerFlow
from ncml.densities.maf import MAFSettings
from ncml.errors import ArgumentError, ArgumentTypeError, UnsupportedError
from ncml.evaluation import bits_per_dim
from ncml.training import MODELS, DataKind, ModelConfig, TrainConfig, build_density, load_density, read_metrics
from ncml.training.config import from_dict, read_toml, to_dict
from ncml.training.models import build_model, model_settings

PROCESS = VPSDE.at_noise(0.25)
LATTICE = Lattice(17)

OWN = textwrap.dedent('''
    """A model of one's own: an independent normal for every value."""

    from typing import Literal

    import torch

    from ncml import NoiseConditionalDensity, SampleableDensity


    class Normals(SampleableDensity):
        def __init__(self, shape, process, std, shift, classes):
            super().__init__(shape, process)
            self.mean = torch.nn.Parameter(torch.full((max(1, classes), *shape), shift))
            self.log_std = torch.nn.Parameter(torch.full(shape, std).log())

        def mean_of(self, context):
            return self.mean[0] if context is None else self.mean[context]

        def forward(self, x, t, context=None, *, edges=True):
            normal = torch.distributions.Normal(self.mean_of(context), self.log_std.exp())
            return normal.log_prob(x).flatten(1).sum(1)

        @torch.no_grad()
        def sample(self, n, t=0.0, context=None, *, generator=None):
            z = torch.randn(n, *self.event_shape, generator=generator)
            return self.mean_of(context) + self.log_std.exp() * z


    class Silent(NoiseConditionalDensity):
        """Gives a likelihood, and no samples."""

        def __init__(self, shape, process):
            super().__init__(shape, process)
            self.mean = torch.nn.Parameter(torch.zeros(shape))

        def forward(self, x, t, context=None, *, edges=True):
            return torch.distributions.Normal(self.mean, 1.0).log_prob(x).flatten(1).sum(1)


    def normals(
        event_shape,
        process,
        lattice,
        *,
        std: float = 0.5,
        shift: float = 0.0,
        kind: Literal["plain", "odd"] = "plain",
        classes: int = 0,
    ):
        """Normals.

        Args:
            event_shape, process, lattice: As every model's.
            std: The spread to begin with.
            shift: The mean to begin with.
            kind: Not used.
            classes: Number of classes.
        """
        return Normals(event_shape, process, std, shift, classes)


    def required(event_shape, process, lattice, *, std: float):
        return Normals(event_shape, process, std, 0.0, 0)


    def anything(event_shape, process, lattice, **settings):
        return Normals(event_shape, process, settings["std"], settings.get("shift", 0.0), 0)


    def silent(event_shape, process, lattice):
        return Silent(event_shape, process)


    def no_density(event_shape, process, lattice):
        return torch.nn.Linear(2, 2)


    def other_shape(event_shape, process, lattice):
        return Silent((3,), process)


    def too_few(event_shape):
        return None


    def reserved(event_shape, process, lattice, *, compile: bool = False):
        return None


    def unknown_type(event_shape, process, lattice, *, module: torch.nn.Module):
        return None


    number = 3
''')

TRAIN = [
    "--data.name",
    "digits",
    "--optim.steps",
    "4",
    "--optim.batch-size",
    "8",
    "--optim.warmup",
    "1",
    "--run.threads",
    "1",
    "--run.accelerator",
    "cpu",
    "--run.log-every",
    "2",
    "--run.save-every",
    "2",
    "--run.validate-images",
    "20",
    "--run.samples",
    "4",
]


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A folder outside the package with a module of models, under a name that nothing else has."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "models_of_ones_own.py").write_text(OWN)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))
    sys.modules.pop("models_of_ones_own", None)


def name(function):
    return f"models_of_ones_own:{function}"


def ncml(own, *arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(own)}
    command = [sys.executable, "-W", "error::UserWarning:ncml", "-m", "ncml", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


# A model of one's own, from outside the package.


def test_a_new_density_goes_through_the_whole_program(own, tmp_path, monkeypatch, capsys):
    """Trained (in a process of its own), resumed, sampled and evaluated by one file and ``--model.name``, no more."""
    run = tmp_path / "run"
    done = ncml(own, "train", "--out", run, *TRAIN, "--model.name", name("normals"), "--model.std", "0.75")
    assert done.returncode == 0, done.stderr
    assert "models_of_ones_own:normals (128 parameters) on 1,437 images 1x8x8 in 17 levels" in done.stdout
    config = json.loads((run / "config.json").read_text())["model"]
    assert (config["name"], config["std"], config["shift"]) == (name("normals"), 0.75, 0.0)
    assert main(["train", "--out", str(run), "--resume", "--optim.steps", "6"]) == 0
    assert (run / "checkpoints" / "step_00000006").exists()
    assert main(["sample", str(run), "--images", "3", "--steps", "2"]) == 0
    samples = np.load(run / "samples" / "samples.npy", allow_pickle=False)
    assert (samples.shape, samples.dtype) == ((3, 1, 8, 8), np.uint8)
    capsys.readouterr()
    assert main(["evaluate", str(run), "--images", "10", "--curve-images", "4", "--ood-images", "10"]) == 0
    assert "upper bounds" in capsys.readouterr().out
    report = json.loads((run / "evaluation" / "report.json").read_text())
    assert report["bits_per_dim"]["0"]["bits"]["kind"] == "upper bound"
    density, *_ = load_density(run)
    assert type(density).__name__ == "Normals"
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder != str(own)])
    monkeypatch.delitem(sys.modules, "models_of_ones_own")
    assert main(["sample", str(run)]) == 2  # where its module is not to be found
    assert "no module 'models_of_ones_own' on Python's path" in capsys.readouterr().err


def test_its_settings_are_in_the_help(own, capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["train", "--model.name", name("normals"), "--help"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "--model.std FLOAT" in printed
    assert "The spread to begin with." in printed
    assert "--model.kind {plain,odd}" in printed
    assert "--model.preset" not in printed


def test_its_settings_in_a_file(own, tmp_path):
    text = f'[model]\nname = "{name("normals")}"\nstd = 2\n[data]\nname = "digits"\n'
    (tmp_path / "c.toml").write_text(text)
    config = read_toml(tmp_path / "c.toml")
    assert (config.model.settings.std, config.model.settings.shift) == (2.0, 0.0)
    assert from_dict(TrainConfig, json.loads(json.dumps(to_dict(config)))) == config
    arguments = ["--config", tmp_path / "c.toml", "--out", tmp_path / "run", *TRAIN, "--model.shift", "0.25"]
    assert main(["train", *map(str, arguments)]) == 0
    stored = json.loads((tmp_path / "run" / "config.json").read_text())["model"]
    assert (stored["std"], stored["shift"]) == (2.0, 0.25)


def test_settings_of_any_name(own, tmp_path):
    arguments = ["--model.name", name("anything"), "--model.set", "std=0.5", "--model.set", "shift=-1.0"]
    assert main(["train", "--out", str(tmp_path), *TRAIN, *arguments]) == 0
    stored = json.loads((tmp_path / "config.json").read_text())["model"]
    assert (stored["std"], stored["shift"]) == (0.5, -1.0)
    assert main(["train", "--out", str(tmp_path), "--resume", "--optim.steps", "5"]) == 0


def test_settings_without_a_default(own, tmp_path, capsys):
    arguments = ["train", "--out", str(tmp_path / "run"), *TRAIN, "--model.name", name("required")]
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert "--model.std" in capsys.readouterr().err
    assert main([*arguments, "--model.std", "0.5"]) == 0
    with pytest.raises(ArgumentError, match="std"):
        from_dict(TrainConfig, {"model": {"name": name("required")}})


def test_classes_are_handed_over(own, tmp_path):
    arguments = ["train", "--out", str(tmp_path), *TRAIN, "--model.name", name("normals"), "--model.classes"]
    assert main(arguments) == 0
    assert load_density(tmp_path)[0].mean.shape == (10, 1, 8, 8)
    assert main(["sample", str(tmp_path), "--images", "2", "--class", "3", "--steps", "1"]) == 0


def test_a_density_that_cannot_sample_trains_and_says_so(own, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["train", "--out", str(run), *TRAIN, "--model.name", name("silent")]) == 0
    assert "a Silent is not a SampleableDensity" in capsys.readouterr().out.replace("A Silent", "a Silent")
    assert not list(run.glob("samples_*"))
    for command in (["sample"], ["evaluate", "--samples", "4"]):
        assert main([command[0], str(run), *command[1:]]) == 2
        assert "Silent, which cannot sample" in capsys.readouterr().err
    assert main(["evaluate", str(run), "--images", "4", "--curve-images", "0", "--ood-images", "4"]) == 0


# Bad input: named before training starts, and nothing is left behind.


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model.name", "nothing"], ["model.name: got 'nothing'", *MODELS, "package.module:function"]),
        (["--model.name", "no_such_module:f"], ["no_such_module", "PYTHONPATH", *MODELS]),
        (["--model.name", "models_of_ones_own:gone"], ["model.name", "gone"]),
        (["--model.name", "models_of_ones_own:number"], ["model.name", "int"]),
        (["--model.name", "models_of_ones_own:no_density"], ["model.name", "Linear", "NoiseConditionalDensity"]),
        (["--model.name", "models_of_ones_own:other_shape"], ["event_shape (3,)", "(1, 8, 8)"]),
        (["--model.name", "models_of_ones_own:too_few"], ["event_shape, process, lattice"]),
        (["--model.name", "models_of_ones_own:reserved"], ["'compile'", "rename"]),
        (["--model.name", "models_of_ones_own:unknown_type"], ["'module'", "a file can hold"]),
        (["--model.name", "models_of_ones_own:silent", "--model.classes"], ["model.classes", "no classes"]),
        (["--model.name", "models_of_ones_own:anything", "--model.set", "std"], ["model.set", "KEY=VALUE"]),
        (["--model.name", "maf", "--model.recompute"], ["model.recompute", "MAF"]),
        (["--model.name", "maf", "--run.strategy", "fsdp"], ["run.strategy", "holds the whole model"]),
        (["--model.name", "maf", "--noise.std-in-levels", "20"], ["noise.std_in_levels", "ve"]),
    ],
)
def test_bad_models_are_named_before_training(own, tmp_path, capsys, arguments, words):
    assert main(["train", "--out", str(tmp_path / "run"), *TRAIN, *arguments]) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in words), error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("model", ["maf", "models_of_ones_own:normals"])
def test_settings_that_a_model_does_not_have(own, tmp_path, capsys, model):
    with pytest.raises(SystemExit, match="2"):
        main(["train", "--out", str(tmp_path / "run"), *TRAIN, "--model.name", model, "--model.preset", "tiny"])
    assert "--model.preset" in capsys.readouterr().err
    (tmp_path / "c.toml").write_text(f'[model]\nname = "{model}"\npreset = "tiny"\n')
    with pytest.raises(ArgumentError, match=r"model\.preset"):
        read_toml(tmp_path / "c.toml")
    with pytest.raises(ArgumentError, match=r"model\.preset"):
        ModelConfig(model, more={"preset": "tiny"})


def test_a_file_of_version_01_is_told_the_new_names(tmp_path):
    for text in ('[network]\npreset = "tiny"\n', "[noise]\nlevels = 2\n"):
        (tmp_path / "c.toml").write_text(text)
        with pytest.raises(ArgumentError, match=r"\[model\].*noise\.std_in_levels"):
            read_toml(tmp_path / "c.toml")


def test_completing_is_asked_for_before_anything_is_done(own, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["train", "--out", str(run), *TRAIN, "--model.name", "maf", "--model.transforms", "1"]) == 0
    capsys.readouterr()
    assert main(["complete", str(run)]) == 2
    assert "MAF (maf), which cannot" in capsys.readouterr().err
    assert not (run / "completions").exists()


def test_settings_of_another_kind_are_refused():
    with pytest.raises(ArgumentTypeError, match=r"model\.settings"):
        ModelConfig("made", settings=MAFSettings())
    with pytest.raises(ArgumentError, match=r"model\.name"):
        from_dict(TrainConfig, {"model": {"name": 3}})
    with pytest.raises(ArgumentError, match=r"model\.transforms"):
        from_dict(TrainConfig, {"model": {"name": "maf", "transforms": "three"}})


def test_a_module_that_misses_something_of_its_own_is_not_called_absent(tmp_path, monkeypatch):
    (tmp_path / "half_a_model.py").write_text("import something_that_is_not_there\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="something_that_is_not_there"):
        model_settings("half_a_model:build")


def test_types_of_settings_are_those_that_a_file_has(tmp_path, monkeypatch):
    """Lists are tuples, of what the default holds where nothing else says so; whole numbers do for real ones."""
    (tmp_path / "listed_model.py").write_text(
        "def build(event_shape, process, lattice, *, a: list = [1, 2], b: tuple = (0.5,), c=('x',), d: list[int] = [],"
        " e: int | float = 1, f: str = 'f'): ..."
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    types = {field.name: field.type for field in dataclasses.fields(model_settings("listed_model:build"))}
    assert types == {
        "a": tuple[int, ...],
        "b": tuple[float, ...],
        "c": tuple[str, ...],
        "d": tuple[int, ...],
        "e": float,
        "f": str,
    }


# The bundled ones.


@pytest.mark.parametrize(
    ("model", "kind", "settings"),
    [
        ("ncpn", NCPN, {"features": 8, "heads": 2, "resolutions": 1}),
        ("maf", MAF, {"transforms": 2, "hidden": (8,)}),
        ("made", MADE, {"hidden": (8,), "components": 2}),
    ],
)
def test_bundled_models_are_what_their_names_say(model, kind, settings):
    config = ModelConfig(model, settings=MODELS[model](**settings))
    built = [build_model(config, (1, 8, 8), PROCESS, LATTICE, classes, 3) for classes in (0, 10, 10)]
    assert all(type(density) is kind for density in built)
    assert built[0].lattice == (None if kind is MAF else LATTICE)
    state, again = built[1].state_dict(), built[2].state_dict()
    assert all(torch.equal(state[k], again[k]) for k in state)  # the weights are a function of the seed
    x = LATTICE.to_unit(torch.randint(17, (3, 1, 8, 8), generator=torch.Generator().manual_seed(0)))
    labels = torch.tensor([0, 5, 9])
    torch.testing.assert_close(built[1].log_prob(x, 0.01, labels), built[2].log_prob(x, 0.01, labels))


@pytest.mark.parametrize("model", MODELS)
def test_every_setting_reaches_the_model(model):
    """A change of each setting changes the parameters, the likelihood or the mode of the model."""
    x = LATTICE.to_unit(torch.randint(17, (2, 1, 8, 8), generator=torch.Generator().manual_seed(0)))
    other = {
        "ncpn": {
            "preset": "small",
            "features": 8,
            "blocks": 2,
            "resolutions": 1,
            "heads": 2,
            "components": 2,
            "dropout": 0.5,
            "label_dropout": 0.5,
            "weight_norm": True,
            "fourier_scale": 2.0,
        },
        "maf": {"transforms": 1, "hidden": (4,), "data_std": 3.0, "noise_features": 4},
        "made": {
            "hidden": (4,),
            "components": 2,
            "head": "gaussian",
            "dropout": 0.5,
            "linear_components": 1,
            "noise_features": 4,
        },
        "causal-transformer": {
            "width": 8,
            "layers": 1,
            "heads": 1,
            "components": 2,
            "head": "gaussian",
            "dropout": 0.5,
            "noise_features": 4,
            "label_dropout": 0.5,
        },
        "transformer-flow": {
            "patch": 2,
            "width": 8,
            "blocks": 1,
            "layers": 1,
            "heads": 1,
            "max_scale": 2.0,
            "dropout": 0.5,
            "data_std": 3.0,
            "noise_features": 4,
            "label_dropout": 0.5,
        },
    }
    changes = other[model]
    assert changes.keys() == set(MODELS[model].__dataclass_fields__) - ({"data_std"} if model == "made" else set())
    small = {"width": 16, "layers": 2, "heads": 2} if "transformer" in model else {}
    shape = (8, 8) if model == "causal-transformer" else (1, 8, 8)

    def said(**settings):
        config = ModelConfig(model, settings=MODELS[model](**{**small, **settings}))
        density = build_model(config, shape, PROCESS, LATTICE, 2, 0)
        torch.manual_seed(0)
        for p in density.parameters():  # what starts at zero hides what comes before it
            p.data += 0.1 * torch.randn(p.shape)
        torch.manual_seed(0)
        many, labels = x.repeat(16, 1, 1, 1).reshape(32, *shape), torch.zeros(32, dtype=torch.long)
        return density.train()(many, torch.full((32,), 0.01), labels).detach(), list(density.state_dict())

    plain, names = said()
    assert torch.equal(said()[0], plain)
    for setting, value in changes.items():
        other_plain, other_names = said(**{setting: value})
        assert other_names != names or not torch.equal(other_plain, plain), setting


def test_data_std_reaches_made():
    """A setting for data on no lattice alone."""
    config = ModelConfig("made", settings=MODELS["made"](hidden=(4,), data_std=3.0))
    assert build_model(config, (2,), PROCESS, None, 0, 0).scaling.data_std == 3.0
    with pytest.raises(ArgumentError, match=r"data_std: got 3\.0 with a lattice"):
        build_model(config, (2,), PROCESS, LATTICE, 0, 0)


KINDS = {"maf": MAF, "made": MADE, "causal-transformer": CausalTransformer, "transformer-flow": TransformerFlow}


@pytest.mark.parametrize("model", KINDS)
def test_settings_have_the_defaults_of_the_model(model):
    """As it is built, and of what its parameters do not show."""
    settings, own = MODELS[model](), inspect.signature(KINDS[model]).parameters
    built = settings.build((8, 2), PROCESS, None)
    plain = KINDS[model]((8, 2), PROCESS, **({"patch": settings.patch} if "patch" in own else {}))
    assert [p.shape for p in built.parameters()] == [p.shape for p in plain.parameters()]
    for name, value in vars(settings).items():
        assert name == "patch" or own[name].default == value


def test_ncpn_needs_images_a_lattice_and_labels_for_classes():
    for shape in ((2,), (64, 1), (2, 8, 8)):
        with pytest.raises(
            ArgumentError, match=r"got 'ncpn' and data of shape .*; take causal-transformer for sequences"
        ):
            build_density(TrainConfig(), DataKind(shape, 17))
    with pytest.raises(ArgumentError, match=r"model\.name: got 'ncpn' and data without a lattice"):
        build_density(TrainConfig(), DataKind((1, 8, 8), std=1.0))
    with pytest.raises(ArgumentError, match=r"model\.classes"):
        build_density(TrainConfig(model=ModelConfig(classes=True)), DataKind((1, 8, 8), 17))


@pytest.mark.parametrize(
    ("model", "shape", "remedy"),
    [
        ("causal-transformer", (48,), "save rows as (N, 48, 1), or take made or maf"),
        ("causal-transformer", (1, 8, 8), "take ncpn or transformer-flow for images, made or maf for other shapes"),
        ("transformer-flow", (48,), "save rows as (N, 48, 1), or take made or maf"),
        ("transformer-flow", (2, 3, 4, 4), "take made or maf"),
    ],
)
def test_models_that_need_a_shape_say_which_and_what_takes_the_data(model, shape, remedy):
    """In the words of the program, which has no event_shape; and what is named instead takes them."""
    with pytest.raises(ArgumentError) as refused:
        build_density(TrainConfig(model=ModelConfig(model)), DataKind(shape, std=1.0))
    assert str(refused.value).startswith(f"model.name: got {model!r} and data of shape {shape}; expected (")
    assert str(refused.value).endswith(f"; {remedy}")
    for other in ("made", "maf"):
        build_density(TrainConfig(model=ModelConfig(other)), DataKind(shape, std=1.0))
    if len(shape) == 1:
        build_density(TrainConfig(model=ModelConfig(model)), DataKind((*shape, 1), std=1.0))


class Wrong(NoiseConditionalDensity):
    def __init__(self, process, lattice):
        super().__init__((2,), process, lattice)

    def forward(self, x, t, context=None, *, edges=True):
        return x.sum(1)


def test_a_model_for_something_else_is_refused(monkeypatch):
    class Settings(MAFSettings):
        def build(self, event_shape, process, lattice, *, classes=0):
            return Wrong(*made_for)

    monkeypatch.setitem(MODELS, "wrong", Settings)
    made_for = (VPSDE.at_noise(0.1), None)
    with pytest.raises(ArgumentError, match="process"):
        build_model(ModelConfig("wrong"), (2,), PROCESS, LATTICE, 0, 0)
    made_for = (PROCESS, Lattice(5))
    with pytest.raises(ArgumentError, match="lattice"):
        build_model(ModelConfig("wrong"), (2,), PROCESS, LATTICE, 0, 0)
    made_for = (PROCESS, None)
    with pytest.raises(UnsupportedError, match="recompute"):
        build_model(ModelConfig("wrong", recompute=True), (2,), PROCESS, LATTICE, 0, 0)


def test_compiling_reaches_the_call(monkeypatch):
    """A density without blocks of its own is compiled in place."""
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, *a, **k: compiled.append(type(self).__name__))
    for model in ("maf", "ncpn"):
        settings = MODELS[model](**({"transforms": 1} if model == "maf" else {"features": 8, "heads": 0}))
        build_model(ModelConfig(model, compile=True, settings=settings), (1, 8, 8), PROCESS, LATTICE, 0, 0)
    assert compiled[0] == "MAF"
    assert set(compiled[1:]) == {"GatedBlock"}


# Flows on lattice data.


def test_a_flow_on_integers_is_dequantised(tmp_path, capsys):
    """No warning, bounds where the numbers are shown, and a likelihood that dequantisation gives."""
    settings = ["--model.name", "maf", "--model.transforms", "2", "--model.hidden", "64", "--optim.steps", "150"]
    settings += ["--optim.batch-size", "64", "--optim.learning-rate", "3e-3", "--optim.ema", "0.9"]
    assert main(["train", "--out", str(tmp_path), *TRAIN, *settings]) == 0
    printed = capsys.readouterr().out
    assert "dequantised" in printed
    assert "at t = 0: <= " in printed
    density, _, kind, _ = load_density(tmp_path)
    assert isinstance(density, SampleableDensity)
    assert density.lattice is None
    assert kind.lattice == LATTICE
    logged = [
        line["validation"]["bits_per_dim"] for line in read_metrics(tmp_path / "metrics.jsonl") if "validation" in line
    ]
    from ncml.data import ImageSource

    x = ImageSource("digits").load(train=False).mixed(20).batch(slice(None))
    bound = bits_per_dim(
        density, x, lattice=kind.lattice, dequantisations=16, generator=torch.Generator().manual_seed(0)
    )
    assert not bound.exact
    assert logged[-1] == pytest.approx(bound.mean, abs=0.05)
    assert logged[-1] < 4.0  # below the uniform distribution's log2(17) = 4.09, after 150 steps


@pytest.mark.parametrize(
    ("shape", "image"), [((1, 4, 4), True), ((2, 4, 4), False), ((3, 4, 4), True), ((3, 4), False)]
)
def test_pictures_are_grey_or_in_colours(shape, image):
    assert DataKind(shape).is_image is image


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_built_without_classes_unless_some_are_given(name):
    """Then it takes no context."""
    shape = (1, 8, 8) if name == "ncpn" else (8, 2)
    density = MODELS[name]().build(shape, VPSDE.at_noise(0.2), Lattice(4))
    assert density.log_prob(torch.zeros(2, *shape), 0.01).shape == (2,)
