"""The tests of ncml: a package, so that ``tests.statistics`` does not shadow the standard library's."""
