# The emulator of the tests, for compose.yaml; never part of keytide's image.
ARG BUILDER=docker.io/library/rust:1.95.0-bookworm@sha256:6258907abe69656e41cd992e0b705cdcfabcbbe3db374f92ed2d47121282d4a1

FROM ${BUILDER} AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked --package keytide-emulator --bin keytide-emulator \
      --config 'build.rustflags=["-C","target-feature=+crt-static"]' --target "$(rustc -vV | sed -n 's/^host: //p')" \
  && cp target/*/release/keytide-emulator /

FROM scratch
COPY --from=build /keytide-emulator /keytide-emulator
USER 65532:65532
ENTRYPOINT ["/keytide-emulator"]
