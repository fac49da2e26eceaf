"""The API, called with what its own schema allows and does not: never an error of the server."""

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error

from tests.app.conftest import Site, scan_bytes, upload

EXAMPLES = 12  # of each operation; `EXAMPLES=500` was run once by hand


def test_no_request_makes_the_server_fail(tmp_path):
    site = Site(tmp_path, solo=True)
    client = site.client()
    upload(client, scan_bytes(), run="t1")
    site.work()
    done = client.get("/api/studies").json()["studies"][0]["id"]
    schema = schemathesis.openapi.from_dict(client.get("/openapi.json").json())
    tried = set()

    for operation in schema.get_all_operations():
        each = operation.ok()

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
            derandomize=True,
        )
        @given(case=each.as_strategy(), real=st.booleans())
        def call(case, real):
            if real and "study_id" in (case.path_parameters or {}):
                case.path_parameters["study_id"] = done
            if "/infer/" in case.path:
                case.query = {**(case.query or {}), "wait": 0}
                if real:
                    case.path_parameters["model"] = "t1"
            response = case.call(session=client, base_url="http://127.0.0.1")
            tried.add((case.operation.label, response.status_code))
            case.validate_response(response, checks=[not_a_server_error])

        call()
    assert len({label for label, _ in tried}) > 15
    assert not [status for _, status in tried if status >= 500]
