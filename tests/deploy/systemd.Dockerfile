# A Debian with systemd as its first process, smtpguard installed by the commands of docs/deploy-systemd.md (test_systemd.py).
ARG BASE
FROM ${BASE}
# What would change the machine that the tests run on stays off; nothing that the page installs may need it.
RUN apt-get update \
  && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends systemd python3-venv ca-certificates procps \
  && systemctl mask systemd-sysctl.service systemd-modules-load.service systemd-udevd.service systemd-remount-fs.service \
    systemd-journald-audit.socket sys-kernel-debug.mount sys-kernel-tracing.mount dev-hugepages.mount \
    systemd-logind.service getty.target console-getty.service apt-daily.timer apt-daily-upgrade.timer
ARG PIP_CERT
COPY . /src
WORKDIR /src
RUN sh -eux /src/commands.sh
# On a host systemd does this itself, in a container it does not, and then credentials never arrive.
CMD ["/bin/sh", "-c", "mount --make-rshared / && exec /lib/systemd/systemd"]
