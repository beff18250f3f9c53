#!/usr/bin/env bash
# Builds the images of the scaler and of agents with the container engine that is there; `make images` calls it.
#
#   ENGINE        docker, podman or buildah; without it the first of these that works
#   IMAGE_PREFIX  what the names begin with, such as registry.example.com/team
#   VERSION       the images' tag, which their programs tell as well
#   PLATFORM      such as linux/amd64; several, comma-separated, make one name for all of them
#   PUSH          1 has the images pushed
#   SCALER_ARGS, AGENT_ARGS  further arguments for the engine, such as --build-arg EXTRA_PACKAGES=make
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."

fail() {
  echo "$*" >&2
  exit 1
}

# A docker without its daemon is as good as none, so each is asked for more than its presence.
find_engine() {
  local candidate
  for candidate in docker podman buildah; do
    if command -v "$candidate" >/dev/null && "$candidate" info >/dev/null 2>&1; then
      echo "$candidate"
      return
    fi
  done
  fail "no container engine works here: install docker, podman or buildah, or name one in ENGINE"
}

# build NAME ARGUMENT... builds Dockerfile.NAME.
build() {
  local name=$1 image=$IMAGE_PREFIX/$1:$VERSION
  shift
  local arguments=(--file "Dockerfile.$name" --platform "$PLATFORM" --build-arg "VERSION=$VERSION"
    --build-arg "REVISION=$REVISION" --build-arg "CREATED=$CREATED" "$@")
  echo "$ENGINE builds $image for $PLATFORM"
  case $ENGINE in
    docker)
      if [[ $PLATFORM == *,* && $PUSH != 1 ]]; then
        fail "docker keeps an image of several platforms in a registry only: set PUSH=1, or one PLATFORM"
      fi
      local keep=--load
      if [[ $PUSH == 1 ]]; then keep=--push; fi
      docker buildx build "${arguments[@]}" --tag "$image" "$keep" .
      ;;
    podman | buildah)
      local tag=(--tag "$image")
      if [[ $PLATFORM == *,* ]]; then
        # A list that is there already would keep what it has.
        "$ENGINE" manifest rm "$image" >/dev/null 2>&1 || true
        tag=(--manifest "$image")
      fi
      "$ENGINE" build --layers "${arguments[@]}" "${tag[@]}" .
      if [[ $PUSH != 1 ]]; then return; fi
      if [[ $PLATFORM == *,* ]]; then
        "$ENGINE" manifest push --all "$image" "docker://$image"
      else
        "$ENGINE" push "$image"
      fi
      ;;
    *) fail "ENGINE=$ENGINE: want docker, podman or buildah" ;;
  esac
}

: "${IMAGE_PREFIX:?}" "${VERSION:?}" "${PLATFORM:?}"
PUSH=${PUSH:-}
REVISION=$(git rev-parse HEAD 2>/dev/null || echo unknown)
# Of the commit, not of the build, so that two builds of it say the same.
CREATED=$(git log -1 --format=%cI 2>/dev/null || echo unknown)
ENGINE=${ENGINE:-$(find_engine)}
read -ra scaler <<<"${SCALER_ARGS:-}"
read -ra agent <<<"${AGENT_ARGS:-}"
build scaler "${scaler[@]}"
build agent "${agent[@]}"
