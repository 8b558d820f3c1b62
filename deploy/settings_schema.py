"""The service's settings as the chart's values: `python deploy/settings_schema.py` writes them into values.schema.json.

To be run after a setting was added or changed; tests/test_deploy.py says if it was forgotten.
"""

import json
from pathlib import Path
from typing import Any, get_args, get_origin

from service.web.operations.settings import Settings

SCHEMA = Path(__file__).parent / "helm" / "logpx" / "values.schema.json"
OF_SECRETS = {"api_keys", "api_keys_file", "admin_keys", "admin_keys_file"}
"""Settings that the chart fills from a Secret (`keys`), so that no key is in a file of values."""
_BOUNDS = {"type", "enum", "minimum", "maximum", "exclusiveMinimum"}


def settings_schema() -> dict[str, Any]:
    """What `settings` must be: each setting but those of keys under its variable's name, within its own bounds."""
    described = Settings.model_json_schema()["properties"]
    properties = {}
    for name, field in Settings.model_fields.items():
        if name in OF_SECRETS:
            continue
        (kind,) = (kind for kind in described[name].get("anyOf", [described[name]]) if kind["type"] != "null")
        schema = {key: value for key, value in kind.items() if key in _BOUNDS}
        if get_origin(field.annotation) is tuple:
            schema = {"type": "string"}  # separated by commas
        if set(get_args(field.annotation)) == {"on", "off"}:
            schema = {"enum": ["on", "off", True, False]}  # YAML reads on and off as truth values
        if name == "port":
            schema |= {"minimum": 1}  # no Service could name a port that the process chooses
        properties[f"LOGPX_{name.upper()}"] = {"description": field.description, **schema}
    return {"type": "object", "additionalProperties": False, "properties": properties}


def main() -> None:
    """Write the file anew."""
    schema = json.loads(SCHEMA.read_text())
    schema["properties"]["settings"] = settings_schema()
    SCHEMA.write_text(json.dumps(schema, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
