#!/bin/sh
# Run while Dockerfile.agent is built: installs the packages of the agent's image and makes its user.
#
#   EXTRA_PACKAGES  further packages of the distribution, separated by spaces
#   AZURE_CLI       where the Azure CLI comes from: microsoft, distribution or none
set -eu

export DEBIAN_FRONTEND=noninteractive

# The key by which Microsoft signs its packages for Linux, as its documentation names it:
# https://learn.microsoft.com/linux/packages
microsoft_key=BC528686B50D79E339D3721CEB3E94ADBE1229CF

fail() {
  echo "$*" >&2
  exit 1
}

install() { apt-get install --yes --no-install-recommends "$@"; }

# Ubuntu 24.04 has no package of its own, and those of other releases are old.
microsoft_cli() {
  keyrings=/etc/apt/keyrings
  mkdir -p "$keyrings"
  install gnupg
  curl --fail --silent --show-error --location --proto =https --retry 3 --output /tmp/microsoft.asc \
    https://packages.microsoft.com/keys/microsoft.asc
  found=$(gpg --show-keys --with-colons /tmp/microsoft.asc | awk -F: '$1 == "fpr" { print $10; exit }')
  [ "$found" = "$microsoft_key" ] || fail "packages.microsoft.com gave the key $found, not $microsoft_key: nothing of it is installed"
  gpg --batch --yes --dearmor --output "$keyrings/microsoft.gpg" /tmp/microsoft.asc
  release=$(. /etc/os-release && echo "$VERSION_CODENAME")
  cat >/etc/apt/sources.list.d/azure-cli.sources <<SOURCES
Types: deb
URIs: https://packages.microsoft.com/repos/azure-cli/
Suites: $release
Components: main
Architectures: $(dpkg --print-architecture)
Signed-By: $keyrings/microsoft.gpg
SOURCES
  apt-get update
  install azure-cli
  apt-get purge --yes --auto-remove gnupg
}

apt-get update
# libicu, libkrb5-3, openssl and zlib1g are what the agent program loads. The name of the first carries a version, so it
# is given as a pattern. EXTRA_PACKAGES is to be split.
# shellcheck disable=SC2086
install bash ca-certificates curl git jq '?name(^libicu[0-9]+$)' libkrb5-3 openssl tini zlib1g ${EXTRA_PACKAGES:-}
case ${AZURE_CLI:-} in
  microsoft) microsoft_cli ;;
  distribution) install azure-cli ;;
  none) ;;
  *) fail "AZURE_CLI=${AZURE_CLI:-}: want microsoft, distribution or none" ;;
esac
rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/dpkg.log /tmp/* /root/.gnupg

# Ubuntu's images have a user with this number.
present=$(getent passwd 1000 | cut -d: -f1)
if [ -n "$present" ]; then userdel --remove "$present"; fi
if ! getent group 1000 >/dev/null; then groupadd --gid 1000 agent; fi
useradd --uid 1000 --gid 1000 --create-home --shell /bin/bash agent
mkdir -p /azp/agent
chown 1000:1000 /azp /azp/agent
