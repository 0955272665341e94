"""Lets Debian's Bazel (bazel-bootstrap 4.2.3) build without a network.

It has no release number, ships no C++, Java or coverage rules, and fetches them for every executable
target although Python uses none of them. The stand-ins below hand over its own native rules. Released
versions of Bazel know where their rules are and are left alone.
"""

def _write_files(context):
    for path, text in context.attr.files.items():
        context.file(path, text)

_stand_in = repository_rule(implementation = _write_files, attrs = {"files": attr.string_dict()})

def _native(rules):
    return "\n".join(["%s = native.%s" % (rule, rule) for rule in rules])

def _empty(targets):
    public = 'filegroup(name = "%s", visibility = ["//visibility:public"])'
    return "\n".join([public % target for target in targets])

def offline_rules():
    """Declares the stand-ins where Bazel is a build without a release number."""
    if native.bazel_version:
        return
    cc = ["cc_binary", "cc_library", "cc_test", "cc_toolchain", "cc_toolchain_suite"]
    java = ["java_binary", "java_import", "java_library", "java_runtime", "java_toolchain"]
    coverage = ["coverage_report_generator", "lcov_merger"]
    _stand_in(name = "rules_cc", files = {"cc/BUILD": "", "cc/defs.bzl": _native(cc)})
    _stand_in(name = "rules_java", files = {"java/BUILD": "", "java/defs.bzl": _native(java)})
    _stand_in(name = "remote_coverage_tools", files = {"BUILD": _empty(coverage)})
