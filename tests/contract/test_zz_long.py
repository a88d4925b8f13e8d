import tests.contract.test_storage_machine as m
from hypothesis import settings
def test_some(database_url):
    reached = m.run(database_url, settings(max_examples=200, stateful_step_count=60, database=None, deadline=None))
    print(dict(reached))
test_some.__test__ = True
import pytest
test_some = pytest.mark.timeout(3000)(test_some)
