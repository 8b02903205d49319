#!/bin/sh
# root.sh DIRECTORY USER ID PACKAGE...: the files of these installed Debian packages as a root directory of its own, without
# shell and tools, with one user and, for scanners, what dpkg knows of each package.  Run while an image is built.
set -eu
root=$1 user=$2 id=$3
shift 3
dpkg-query --show "$@" > /dev/null # each is installed, or we end here

# Debian's merged /usr: what packages call /lib is /usr/lib.
mkdir -p "$root/usr/lib" "$root/usr/lib64" "$root/usr/bin" "$root/usr/sbin" "$root/etc/ssl/certs" \
  "$root/var/lib/dpkg/status.d"
for name in lib lib64 bin sbin; do
  ln -s "usr/$name" "$root/$name"
done

# Files alone are listed, so that nothing comes along unasked.  Manuals stay behind, copyright files come.
dpkg-query --listfiles "$@" | sort -u |
  grep -v -E '^/usr/(share/(man|locale|lintian|bash-completion|info)/|sbin/update-)' |
  while read -r path; do
    if [ -L "$path" ] || [ -f "$path" ]; then
      printf '%s\n' "$path"
    fi
  done > /tmp/files
tar --directory / --create --file - --no-recursion --files-from /tmp/files |
  tar --directory "$root" --extract --keep-directory-symlink
for package in "$@"; do
  dpkg-query --status "$package" > "$root/var/lib/dpkg/status.d/$package"
done

# What packages make when they are installed.
case " $* " in
  *" ca-certificates "*) cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/" ;;
esac
ldconfig -r "$root"

cat > "$root/etc/passwd" <<END
root:x:0:0:root:/root:/usr/sbin/nologin
$user:x:$id:$id:$user:/var/lib/$user:/usr/sbin/nologin
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
END
cat > "$root/etc/group" <<END
root:x:0:
$user:x:$id:
nogroup:x:65534:
END
echo 'hosts: files dns' > "$root/etc/nsswitch.conf"
mkdir -p "$root/tmp" "$root/run/$user" "$root/proc" "$root/sys" "$root/dev" "$root/etc/$user" "$root/var/lib/$user"
chmod 1777 "$root/tmp"
chown "$id:$id" "$root/var/lib/$user" "$root/run/$user"
chmod 0750 "$root/var/lib/$user" "$root/run/$user"
