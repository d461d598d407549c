"""Installs the four top-level folders below one import package, `anabranch`."""

from setuptools import find_packages, setup

FOLDERS = ("dataflows", "models", "producers", "state")

setup(
    packages=[
        "anabranch",
        *(
            f"anabranch.{package}"
            for package in find_packages(include=[f"{folder}*" for folder in FOLDERS])
        ),
    ],
    package_dir={"anabranch": "anabranch", **{f"anabranch.{f}": f for f in FOLDERS}},
    package_data={"anabranch": ["py.typed"]},
)
