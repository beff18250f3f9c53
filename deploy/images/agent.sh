#!/bin/sh
# Run while Dockerfile.agent is built: puts the agent program into the image, if its version is given.
#
#   AGENT_VERSION                           such as 4.272.0; empty leaves the program to be downloaded by pods
#   AGENT_SHA256_AMD64, AGENT_SHA256_ARM64  of the package for the processor, as its release page gives it
#   AGENT_URL                               where the packages lie, below which they are found by version
#   TARGETARCH                              the image's processor, as Go calls it
set -eu

fail() {
  echo "$*" >&2
  exit 1
}

[ -n "${AGENT_VERSION:-}" ] || exit 0
case $AGENT_VERSION in
  *[!0-9.]*) fail "AGENT_VERSION=$AGENT_VERSION: want a version such as 4.272.0" ;;
esac
# Some engines set TARGETARCH only when they are told a platform. Debian has the same names.
architecture=${TARGETARCH:-$(dpkg --print-architecture)}
case $architecture in
  amd64) platform=linux-x64 name=AGENT_SHA256_AMD64 sum=${AGENT_SHA256_AMD64:-} ;;
  arm64) platform=linux-arm64 name=AGENT_SHA256_ARM64 sum=${AGENT_SHA256_ARM64:-} ;;
  *) fail "TARGETARCH=$architecture: there is an agent for amd64 and arm64" ;;
esac
[ -n "$sum" ] || fail "$name is not set: the agent's release page has the SHA-256 of its package for $platform"

package=vsts-agent-$platform-$AGENT_VERSION.tar.gz
archive=$(mktemp)
curl --fail --silent --show-error --location --retry 3 --output "$archive" "$AGENT_URL/$AGENT_VERSION/$package"
echo "$sum  $archive" | sha256sum --check --status || fail "$package has another SHA-256 than $name says: $(sha256sum "$archive" | cut -d' ' -f1)"
tar --extract --gzip --file "$archive" --directory /azp/agent --no-same-owner
rm "$archive"
# The agent writes into its own folder.
chown -R 1000:1000 /azp/agent
