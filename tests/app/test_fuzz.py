"""The API, called with what its own schema allows and does not: never an error of the server."""

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode

from tests.app.conftest import Site, scan_bytes, upload

pytestmark = pytest.mark.slow

EXAMPLES = 8  # of each operation; 300 were tried by hand
HOST = {"Host": "127.0.0.1"}


def test_no_request_makes_the_server_fail(tmp_path):
    site = Site(tmp_path, solo=True)
    client = site.client()
    upload(client, scan_bytes(), run="t1")
    site.work()
    done = client.get("/api/studies").json()["studies"][0]["id"]
    schema = schemathesis.openapi.from_asgi("/openapi.json", site.app, headers=HOST)
    tried = set()

    for result in schema.get_all_operations():
        operation = result.ok()
        cases = operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
        if operation.body or operation.query or operation.path_parameters:
            cases |= operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
            derandomize=True,
        )
        @given(case=cases, real=st.booleans())
        def call(case, real):
            if real and "study_id" in (case.path_parameters or {}):
                case.path_parameters["study_id"] = done
            if "/infer/" in case.path:
                case.query = {**(case.query or {}), "wait": 0}
                case.path_parameters["model"] = "t1" if real else "none"
            response = case.call(headers=HOST)
            tried.add((case.operation.label, response.status_code))
            case.validate_response(response, checks=[not_a_server_error])

        call()
    assert len({label for label, _ in tried}) > 15
    codes = {code for _, code in tried}
    assert {200, 404, 422} <= codes  # it came through to what it called
    assert max(codes) < 500
