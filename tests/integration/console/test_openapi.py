"""The description of the routes, and the page that shows it."""

import jsonschema

from tests.integration.console.conftest import World


def test_every_answer_has_a_schema_that_exists(world: World) -> None:
    found = world.browser(None).get("/openapi.json").json
    schemas = found["components"]["schemas"]
    for path, methods in found["paths"].items():
        for operation in methods.values():
            assert operation["summary"]
            if path in ("/health", "/live", "/session"):
                continue
            schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
            assert schema["$ref"].rpartition("/")[2] in schemas
    assert found["info"]["title"] == "Sightline"


def test_the_answers_of_real_services_are_as_described(world: World) -> None:
    found = world.browser(None).get("/openapi.json").json
    others = ("/health", "/live", "/session", "/infer")
    read = [path for path in found["paths"] if path not in others]
    assert len(read) == 12
    for path in (path for path in read if "{" not in path):
        content = found["paths"][path]["get"]["responses"]["200"]["content"]
        schema = {**content["application/json"]["schema"], "components": found["components"]}
        jsonschema.Draft202012Validator(schema).validate(world.browser().get(path).json)
    refusal = world.browser(None).get("/stats").json
    jsonschema.Draft202012Validator(found["components"]["schemas"]["Error"]).validate(refusal)


def test_the_reference_of_routes_needs_nobody_else(world: World) -> None:
    page = world.browser(None).get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert b"/apidocs/rapidoc-min.js" in page.body
    assert b"https://" not in page.body
    script = world.browser(None).get("/apidocs/rapidoc-min.js")
    assert (script.status, script.headers["etag"] != "") == (200, True)
