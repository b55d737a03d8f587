#!/bin/sh
# mkdocs build --strict --quiet ends with 0 although a link is broken. --quiet suppresses all warnings, and the strict build counts only the
# warnings that are shown. The same build without --quiet is aborted. A job that builds with --quiet therefore checks nothing.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target "$work/packages" mkdocs==1.6.1
export PYTHONPATH="$work/packages"
mkdir "$work/docs"
echo 'site_name: links' >"$work/mkdocs.yml"
echo '[a page that is not there](absent.md)' >"$work/docs/index.md"
cd "$work"
python3 -m mkdocs --version
loud=0 && python3 -m mkdocs build --strict 2>&1 || loud=$?
quiet=0 && python3 -m mkdocs build --strict --quiet 2>&1 || quiet=$?
echo "exit code of --strict: $loud; of --strict --quiet: $quiet"
test "$loud" = 1
test "$quiet" = 0
