# smtpguard without a shell, a package manager or root: Debian's Python, the locked packages, the program.
#
#     docker build -t smtpguard .
#     docker build -t smtpguard-interception --target interception .     # the init container that redirects port 25
#
# BASE is pinned by digest; a build without a registry gives its own Debian 12 (tests/deploy makes one by debootstrap).
# Where a proxy with its own authority stands before the package index, PIP_CERT names a mounted file of authorities.
ARG BASE=docker.io/library/debian:bookworm-20260824-slim@sha256:88200866dfff7ea7f5cbcb6ec7c8a701889efe6fe859fe64d6990e4b07ea4171

# -- the program and its packages, each checked against its hash
FROM ${BASE} AS build
# The base is pinned; packages are those of the day, with their security updates.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends ca-certificates python3-venv \
  && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY requirements.lock requirements-build.lock ./
ARG PIP_CERT
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_COMPILE=1 PIP_ONLY_BINARY=:all:
RUN python3 -m venv /opt/build \
  && /opt/build/bin/pip install --require-hashes -r requirements-build.lock \
  && /usr/bin/python3.11 -m venv --without-pip --symlinks /opt/smtpguard \
  && /opt/build/bin/pip --python /opt/smtpguard/bin/python install --require-hashes -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY smtpguard smtpguard
# Bytecode is not looked at again: the root of the container cannot be written.
RUN /opt/build/bin/pip wheel --no-build-isolation --no-deps --no-index --wheel-dir /dist . \
  && /opt/build/bin/pip --python /opt/smtpguard/bin/python install --no-deps --no-index /dist/smtpguard-*.whl \
  && /opt/build/bin/python -m compileall -q --invalidation-mode unchecked-hash /opt/smtpguard/lib

# -- the root of the container: the files of these Debian packages and no others
FROM ${BASE} AS root
ARG PACKAGES="base-files netbase ca-certificates libc6 libgcc-s1 zlib1g libbz2-1.0 liblzma5 libexpat1 libffi8 libuuid1 \
  libssl3 libsqlite3-0 python3.11-minimal libpython3.11-minimal libpython3.11-stdlib"
COPY deploy/container/root.sh /
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends ${PACKAGES} \
  && rm -rf /var/lib/apt/lists/* && sh /root.sh /rootfs smtpguard 10125 ${PACKAGES} \
  && python3.11 -m compileall -q --invalidation-mode unchecked-hash -s /rootfs /rootfs/usr/lib/python3.11
COPY --from=build /opt/smtpguard /rootfs/opt/smtpguard
COPY LICENSE /rootfs/usr/share/doc/smtpguard/LICENSE
COPY deploy/container/smtpguard.toml /rootfs/etc/smtpguard/smtpguard.toml
RUN chroot /rootfs /opt/smtpguard/bin/smtpguard --version

# -- the init container of deploy/kubernetes/sidecar-intercepting: sets the rules and ends
FROM ${BASE} AS interception-root
ARG PACKAGES="base-files netbase libc6 nftables libnftables1 libnftnl11 libmnl0 libjansson4 libxtables12 libgmp10 \
  libedit2 libbsd0 libmd0 libtinfo6"
COPY deploy/container/root.sh /
# The base is pinned; packages are those of the day, with their security updates.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends ${PACKAGES} \
  && rm -rf /var/lib/apt/lists/* && sh /root.sh /rootfs smtpguard 10125 ${PACKAGES} && chroot /rootfs /usr/sbin/nft --version

FROM scratch AS interception
LABEL org.opencontainers.image.title="smtpguard-interception" \
  org.opencontainers.image.description="Redirects the outgoing SMTP connections of a pod to smtpguard" \
  org.opencontainers.image.licenses="Apache-2.0"
COPY --from=interception-root /rootfs /
ENTRYPOINT ["/usr/sbin/nft"]
CMD ["--file", "/etc/smtpguard/interception.nft"]

# -- the image
FROM scratch AS smtpguard
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=unknown
LABEL org.opencontainers.image.title="smtpguard" \
  org.opencontainers.image.description="A proxy in front of the MTA you have: no mail with less TLS than was asked for" \
  org.opencontainers.image.licenses="Apache-2.0" \
  org.opencontainers.image.version="${VERSION}" \
  org.opencontainers.image.revision="${REVISION}" \
  org.opencontainers.image.created="${CREATED}"
COPY --from=root /rootfs /
ENV PATH=/opt/smtpguard/bin:/usr/bin:/bin PYTHONDONTWRITEBYTECODE=1
USER 10125:10125
WORKDIR /var/lib/smtpguard
VOLUME ["/var/lib/smtpguard"]
# Inbound 2525 and 1465 (a Service or -p gives them 25 and 465), outbound SMTP and LMTP, metrics and health.
EXPOSE 2525 1465 10026 10027 9826
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=6s --start-period=30s --retries=3 CMD ["/opt/smtpguard/bin/smtpguard", "health"]
ENTRYPOINT ["/opt/smtpguard/bin/smtpguard"]
CMD ["run"]
