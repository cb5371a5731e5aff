"""The figures of the front door, as Prometheus reads them."""

from raftspine.services.telemetry import Telemetry


def test_requests_are_counted_by_status_and_timed_by_route() -> None:
    telemetry = Telemetry()
    for seconds in (0.0001, 0.0005, 0.003, 9.0):
        telemetry.observe("/x", "GET", 200, seconds)
    telemetry.observe("/x", "GET", 404, 0.1)
    telemetry.observe("/y", "PUT", 201, 0.1)
    page = telemetry.page().decode()
    for line in (
        'spine_http_requests_total{method="GET",route="/x",status="200"} 4.0',
        'spine_http_requests_total{method="GET",route="/x",status="404"} 1.0',
        'spine_http_requests_total{method="PUT",route="/y",status="201"} 1.0',
        'spine_http_request_seconds_bucket{le="0.0005",method="GET",route="/x"} 2.0',
        'spine_http_request_seconds_bucket{le="0.1",method="GET",route="/x"} 4.0',
        'spine_http_request_seconds_bucket{le="5.0",method="GET",route="/x"} 4.0',
        'spine_http_request_seconds_bucket{le="+Inf",method="GET",route="/x"} 5.0',
        'spine_http_request_seconds_count{method="GET",route="/x"} 5.0',
        'spine_http_request_seconds_sum{method="GET",route="/x"} 9.1036',
    ):
        assert line in page.splitlines()
