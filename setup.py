from pathlib import Path

from setuptools import find_packages, setup

version: dict[str, str] = {}
exec(Path("pawand/__init__.py").read_text(encoding="utf-8"), version)

setup(
    name="pawand",
    version=version["__version__"],
    description="The Pawan coding agent on HTTP: sessions, tools and server-sent events",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    packages=find_packages(include=["pawand", "pawand.*"]),
    package_data={"pawand": ["py.typed"]},
    scripts=["bin/pawand"],
    data_files=[
        ("share/pawand/systemd", ["systemd/pawand.service", "systemd/pawand.socket"]),
        ("share/pawand/systemd/user", ["systemd/user/pawand.service", "systemd/user/pawand.socket"]),
    ],
    install_requires=[
        "tornado>=6.5",
        "click>=8.1",
        "tomlkit>=0.13",
        "openai[aiohttp]>=3.50,<4",
        "zeroconf>=0.154",
        "msgspec>=0.19",
        "rich>=13.9",
        "pyyaml>=6",
        "prometheus-client>=0.24",
    ],
    extras_require={
        "ast-grep": ["ast-grep-cli>=0.40"],
        "local": ["xllamacpp"],
        "mcp": ["mcp>=2.3,<3"],
        "test": [
            "ast-grep-cli>=0.40",
            "mcp>=2.3,<3",
            "setuptools>=70.1,<82",
            "pytest>=9,<10",
            "pytest-tornado==0.8.1",
            "pytest-cov>=7",
            "pytest-xdist>=3.6",
            "blockbuster>=1.5",
            "hypothesis>=6.150",
            "requests>=2.32",
            "schemathesis>=4.20,<5",
            "sseclient-py>=1.9",
        ],
        "dev": ["mypy>=2.4", "ruff>=0.17", "pre-commit>=4", "types-PyYAML"],
    },
    classifiers=[
        "License :: OSI Approved :: MIT License",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
    ],
)
