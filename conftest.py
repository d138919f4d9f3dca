"""The order of the tests: the files that take longest go first, so that no core waits for another at the end."""

LONGEST = ("08_worth_having", "11_estimators", "06_clusters", "03_annealing", "04_cifar",
           "09_your_images", "10_one_pass", "test_teaching", "test_training", "test_notebooks", "test_sweep",
           "test_parallel", "test_precision", "test_book", "test_devices", "test_address")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: (*LONGEST, item.path.stem).index(item.path.stem))
