# keytide's image: one static binary and the certificates of the public authorities.
#
#   docker buildx build --build-arg VERSION=0.1.0 --build-arg REVISION="$(git rev-parse HEAD)" \
#     --output type=image,name=REGISTRY/keytide:0.1.0,push=true,oci-mediatypes=true,compression=zstd,compression-level=19,force-compression=true .
#
# It is for the machine's own architecture; --platform linux/amd64,linux/arm64 makes both, where the builder can run both.
# With zstd it is a tenth smaller than with gzip; containerd has read it since 1.5, Docker since 23.
#
# A binary that is there already takes the place of the first stage: --build-context build=DIRECTORY, which holds `keytide`
# and `ca-certificates.crt`. The same two files give the same image: SOURCE_DATE_EPOCH, or `buildah build --timestamp`.

# Whatever has Rust, a C compiler and ca-certificates; here Debian's glibc, which the binary is linked with.
ARG BUILDER=docker.io/library/rust:1.95.0-bookworm@sha256:6258907abe69656e41cd992e0b705cdcfabcbbe3db374f92ed2d47121282d4a1

FROM ${BUILDER} AS build
ARG TARGETARCH
# Where the source lies in the builder: the compiler's cache knows it by its path.
ARG SOURCE=/src
WORKDIR ${SOURCE}
COPY Cargo.toml Cargo.lock ./
COPY src src
# Not compiled, but cargo wants what Cargo.toml names.
COPY tests tests
COPY benches benches
# The flags of a release, which tests/run reads here.
ENV RUSTFLAGS="-C target-feature=+crt-static -C link-arg=-Wl,-z,pack-relative-relocs"
# And for amd64, where Rust links with lld: the same code once only, and what hardly ever runs apart from the rest.
ENV LLDFLAGS="-C link-arg=-Wl,--icf=all -C link-arg=-Wl,-z,keep-text-section-prefix -C link-arg=-Wl,-O2"
# To build for another machine, the builder has to have Rust's library for it, and its GCC under the usual name.
RUN set -eu; \
    case "$TARGETARCH" in \
      amd64) cpu=x86_64; export RUSTFLAGS="$RUSTFLAGS $LLDFLAGS" ;; \
      arm64) cpu=aarch64 ;; \
      *) echo "no keytide for the architecture '$TARGETARCH': amd64 and arm64" >&2; exit 64 ;; \
    esac; \
    target=$cpu-unknown-linux-gnu; \
    [ "$(uname -m)" = "$cpu" ] || export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc \
      CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_LINKER=x86_64-linux-gnu-gcc; \
    cargo build --release --locked --target "$target" --bin keytide; \
    cp "target/$target/release/keytide" /etc/ssl/certs/ca-certificates.crt /

FROM scratch
ARG VERSION=0.0.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="keytide" \
      org.opencontainers.image.description="A secret-sync sidecar for Kubernetes: AWS Secrets Manager keys, always fresh, in a file your application can trust" \
      org.opencontainers.image.source="https://github.com/keytide/keytide" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /keytide /keytide
USER 65532:65532
ENTRYPOINT ["/keytide"]
