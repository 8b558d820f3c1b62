"""Check what this folder has for Kubernetes, without a cluster: `make check-deploy HELM=helm CRDS=folder`.

Helm lints the chart strictly and renders each set of values in helm/logpx/ci/. Every object, and those of kserve/, must
fit the schemas of the three newest Kubernetes versions that kubernetes-validate knows or, if Kubernetes does not know
its kind, the schema of a custom resource definition; a field that no schema names is an error. What no schema can tell
is checked besides: that settings arrive as they were given, that a pod is given time to drain, and that Helm refuses
each key of values.yaml when it is misspelt.

It is a script here and no test: it needs Helm and other projects' definitions, which this repository does not hold.
tests/test_deploy.py checks what needs neither.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent
CHART = FOLDER / "helm" / "logpx"
VERSIONS = 3
CONTRADICTORY: Mapping[str, Mapping[str, Any]] = {
    "modelStore.type initContainer downloads": {
        "modelStore": {"type": "initContainer", "initContainer": {"image": "x"}}
    },
    "with keys, /metrics needs one": {"keys": {"secret": "x"}, "serviceMonitor": {"enabled": True}},
}
"""Values that only templates can refuse, by how the refusal begins."""
Schemas = Mapping[tuple[str, str], Mapping[str, Any]]
"""Of custom resources, by `apiVersion` and `kind`."""


class CheckError(Exception):
    """Something is not as it should be; the message names it."""


@dataclass(frozen=True)
class Helm:
    """The program, which never reaches a cluster here."""

    program: str

    def run(self, *arguments: str) -> tuple[bool, str]:
        """Whether it succeeded, and what it printed: its output, or else its errors."""
        done = subprocess.run([self.program, *arguments], capture_output=True, text=True, check=False, timeout=60)  # noqa: S603 (the caller's own)
        return done.returncode == 0, done.stdout if done.returncode == 0 else done.stderr + done.stdout

    def render(self, values: Path) -> list[dict[str, Any]]:
        """The objects of a release called logpx in the namespace lab.

        Raises:
            CheckError: Helm refuses the values.
        """
        done, text = self.run("template", "logpx", str(CHART), "--namespace", "lab", "--values", str(values))
        if not done:
            raise CheckError(f"{values.name}: {text.strip()}")
        return [document for document in yaml.safe_load_all(text) if document]


def closed(schema: Any) -> Any:
    """A custom resource's schema that refuses fields which it does not name, except where it preserves unknown ones.

    >>> closed({"properties": {"a": {"type": "integer"}}})
    {'properties': {'a': {'type': 'integer'}}, 'additionalProperties': False}
    """
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {
        name: {key: closed(value) for key, value in part.items()} if name == "properties" else closed(part)
        for name, part in schema.items()
        if name not in ("default", "enum", "example")
    }
    kept = {name: schema[name] for name in schema if name == "enum"}
    open_ = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    return {**inner, **kept, **({"additionalProperties": False} if "properties" in schema and not open_ else {})}


def custom_schemas(folder: Path) -> dict[tuple[str, str], Mapping[str, Any]]:
    """The closed schemas of all custom resource definitions in the YAML files of a folder."""
    found: dict[tuple[str, str], Mapping[str, Any]] = {}
    for file in sorted(folder.rglob("*.y*ml")):
        for document in yaml.safe_load_all(file.read_text()):
            if isinstance(document, dict) and document.get("kind") == "CustomResourceDefinition":
                spec = document["spec"]
                for version in spec["versions"]:
                    schema = closed(version["schema"]["openAPIV3Schema"])
                    schema["properties"] |= {"metadata": {"type": "object"}}
                    found[f"{spec['group']}/{version['name']}", spec["names"]["kind"]] = schema
    return found


def misspelt(values: Mapping[str, Any], *path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Values in which one key is spelt otherwise, for each key at any depth, with the key's path.

    >>> dict(misspelt({"gpu": {"enabled": False}}))
    {'gpu': {'gpuu': {'enabled': False}}, 'gpu.enabled': {'gpu': {'enabledd': False}}}
    """
    for key, value in values.items():
        wrong: Any = {key + key[-1]: value}
        for outer in reversed(path):
            wrong = {outer: wrong}
        yield ".".join((*path, key)), wrong
        if isinstance(value, dict):
            yield from misspelt(value, *path, key)


def check_settings(values: Mapping[str, Any], objects: Sequence[Mapping[str, Any]]) -> None:
    """Every setting is in the container's environment with its value, and a pod has time to drain.

    Raises:
        CheckError: one is not.
    """
    (deployment,) = (found for found in objects if found["kind"] == "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    variables = [variable["name"] for variable in container["env"]]
    if len(set(variables)) < len(variables):
        raise CheckError(f"a variable is there twice: {variables}")
    env = {variable["name"]: variable.get("value") for variable in container["env"]}
    for name, value in values.get("settings", {}).items():
        told = {False: "off", True: "on"}[value] if isinstance(value, bool) else str(value)
        if env.get(name) != told:
            raise CheckError(f"{name} is {env.get(name)!r}, not {told!r}")
    drain = float(env.get("LOGPX_DRAIN_SECONDS", 20))
    slept = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    if not pod["terminationGracePeriodSeconds"] > slept + 2 * drain + 1:
        raise CheckError(
            f"a pod has {pod['terminationGracePeriodSeconds']} s to sleep {slept} s and drain {drain} s twice"
        )
    if int(env["LOGPX_PORT"]) != container["ports"][0]["containerPort"]:
        raise CheckError("the container's port is not the service's")
    ingress = values.get("ingress", {})
    if ingress.get("enabled") and env.get("LOGPX_ROOT_PATH", "/") != ingress.get("path", "/"):
        raise CheckError(f"LOGPX_ROOT_PATH is not the path of the ingress: {ingress}")
    if ("replicas" in deployment["spec"]) == values.get("autoscaling", {}).get("enabled", False):
        raise CheckError("either the chart or KEDA says how many replicas there are")


def validator(custom: Schemas) -> tuple[list[str], Callable[[Mapping[str, Any], str], None]]:
    """The newest Kubernetes versions, and what checks an object by one of them.

    Of Kubernetes' own kinds the package has closed schemas; an unknown kind, of which it would only warn, is an error.
    """
    import jsonschema
    from kubernetes_validate import SchemaNotFoundError, validate
    from kubernetes_validate.utils import all_versions, major_minor

    versions = sorted(
        {major_minor(version) for version in all_versions()}, key=lambda one: tuple(map(int, one.split(".")))
    )

    def check_object(document: Mapping[str, Any], version: str) -> None:
        kind = document["apiVersion"], document["kind"]
        try:
            if kind in custom:
                jsonschema.Draft7Validator(custom[kind]).validate(document)
            else:
                validate(document, version, strict=True)
        except SchemaNotFoundError as error:
            raise CheckError(error.message) from None
        except jsonschema.ValidationError as error:
            where = ".".join(map(str, error.absolute_path))
            raise CheckError(f"{kind[1]} {document['metadata']['name']}: {where}: {error.message}") from None

    return versions[-VERSIONS:], check_object


def check(helm: Helm, crds: Path) -> Iterator[str]:
    """Do all of it; yields a line for each part that is right.

    Raises:
        CheckError: a part is not.
    """
    sets = sorted((CHART / "ci").glob("*-values.yaml"))
    if not sets:
        raise CheckError("helm/logpx/ci has no values")
    for values in sets:
        done, text = helm.run("lint", "--strict", "--quiet", str(CHART), "--values", str(values))
        if not done:
            raise CheckError(f"{values.name}: {text.strip()}")
    yield f"helm lint --strict: {len(sets)} sets of values"
    rendered = {values: helm.render(values) for values in sets}
    for values, objects in rendered.items():
        check_settings(yaml.safe_load(values.read_text()) or {}, objects)
    every = [document for objects in rendered.values() for document in objects]
    every += [
        document
        for file in sorted((FOLDER / "kserve").glob("*.yaml"))
        for document in yaml.safe_load_all(file.read_text())
    ]
    versions, check_object = validator(custom_schemas(crds))
    for version in versions:
        for document in every:
            check_object(document, version)
            unknown = {**document, "spec": {**document["spec"], "unknown": 1}}
            try:
                check_object(unknown, version)
            except CheckError:
                continue
            raise CheckError(f"{document['kind']}: an unknown field in its spec would not be found")
        yield f"Kubernetes {version}: {len(every)} objects"
    kinds = sorted({document["kind"] for document in every})
    yield f"kinds: {', '.join(kinds)}"
    own = yaml.safe_load((CHART / "values.yaml").read_text())
    wrongs: list[tuple[str, Mapping[str, Any], str]]
    wrongs = [(path, wrong, "additional properties") for path, wrong in misspelt(own)]
    wrongs += [(told, wrong, told) for told, wrong in CONTRADICTORY.items()]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "values.yaml"
        for path, wrong, told in wrongs:
            file.write_text(yaml.safe_dump(wrong))
            done, text = helm.run("template", "logpx", str(CHART), "--values", str(file))
            if done or told not in text:
                raise CheckError(f"{path}: is not refused" + ("" if done else f" for that: {text.strip()}"))
    yield f"refused: {len(wrongs) - len(CONTRADICTORY)} misspelt keys, {len(CONTRADICTORY)} contradictions"


def main() -> int:
    """Check, and print what was."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--helm", default="helm", help="the program (default: %(default)s)")
    parser.add_argument("--crds", type=Path, required=True, help="folder of custom resource definitions")
    parsed = parser.parse_args()
    try:
        for line in check(Helm(parsed.helm), parsed.crds):
            print(line, flush=True)
    except (CheckError, OSError, yaml.YAMLError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
