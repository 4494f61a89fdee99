root=ROOT
out=OUT
(
  LC_ALL=C wrong=0 named=/ broken=/ covered=//bundle// sums=
  blobs=$out/bundle/blobs/sha256
  # names of others reach the terminal only where they are harmless
  say() { case $1 in *[!-.,:=+@~_/0-9A-Za-z\ ]*) echo "- a name with unusual characters" ;; *) echo "- $1" ;; esac; }
  bad() { wrong=1; say "$1"; }
  here() { [ -e "$1" ] || [ -h "$1" ]; }
  is() { [ -f "$2" ] && [ ! -h "$2" ] && [ "$(sha256sum <"$2")" = "$1  -" ]; }
  # what an index or a manifest names, one digest a line
  digests() {
    sed 's/"digest" *: *"sha256:/\
=/g' "$1" | sed -n 's/^=\([0-9a-f]\{64\}\)".*/\1/p'
  }
  # each blob that is named is read once
  take() {
    case $named in *"/$1/"*) ;; *)
      named=$named$1/
      is "$1" "$blobs/$1" || { broken=$broken$1/; bad "blob $1: missing or changed"; } ;;
    esac
    case $broken in *"/$1/"*) return 1 ;; esac
  }
  parts() { for part in $(digests "$1"); do take "$part" || :; done; }
  only() {
    for file in "$1"/* "$1"/.[!.]* "$1"/..?*; do
      case $2 in *"/${file##*/}/"*) ;; *) ! here "$file" || bad "$file: added" ;; esac
    done
  }
  look() {
    for file in "$out/$1"* "$out/$1".[!.]* "$out/$1"..?*; do
      name=${file#"$out/"}
      case $covered in
        *"//$name//"*) ;;
        *)
          case $covered in *"//$name/"*) [ ! -d "$file" ] || { look "$name/"; continue; } ;; esac
          ! here "$file" || say "$file: not covered by the root"
          ;;
      esac
    done
  }

  is "${root#sha256:}" "$out/bundle/index.json" || { echo "STOP: index.json is not what the root names"; exit 1; }
  for top in $(digests "$out/bundle/index.json"); do
    take "$top" || continue
    if [ -n "$(sed -n 's/.*"manifests" *:.*/index/p' "$blobs/$top")" ]; then
      for child in $(digests "$blobs/$top"); do take "$child" && parts "$blobs/$child"; done
    else
      parts "$blobs/$top"
      sums="$sums
$(sed -n 's/.*"layers":\[{"annotations":{"org.opencontainers.image.title":"\([^"\\]*\)"},"digest":"sha256:\([0-9a-f]*\)".*/\2 \1/p' "$blobs/$top")"
    fi
  done
  is 18f0797eab35a4597c1e9624aa4f15fd91f6254e5538c1e0d193b2a95dd4acc6 "$out/bundle/oci-layout" || bad "oci-layout: changed"
  for folder in "$out/bundle/blobs" "$blobs"; do [ ! -h "$folder" ] || bad "$folder: a link"; done
  only "$out/bundle" /oci-layout/index.json/blobs/
  only "$out/bundle/blobs" /sha256/
  only "$blobs" "$named"

  # next to the bundle: its copies and archives, of which the manifest in the bundle has the digests
  manifest=$(echo "$sums" | sed -n 's/ airgap-manifest.yaml$//p')
  if [ -n "$manifest" ] && take "$manifest"; then
    sums="$sums
$(sed -n '/^  tar: /{N;s/^  tar: \(.*\)\n  sha256: \([0-9a-f]*\)$/\2 \1/p;}' "$blobs/$manifest")"
  fi
  while read -r sum name; do
    case $name in
      '' | airgap-rehearsal.json | airgap.lock.yaml) continue ;;
      airgap-manifest.yaml) take "$sum" || continue; sum=$({ sed '' "$blobs/$sum"; echo "root: $root"; } | sha256sum) sum=${sum%%  -} ;;
    esac
    covered=$covered$name//
    ! here "$out/$name" || is "$sum" "$out/$name" || bad "$out/$name: changed"
  done <<END
$sums
END
  look ''
  [ "$wrong" = 0 ] || { echo "STOP: use nothing of it"; exit 1; }
  echo "the bundle is what the root names; use nothing that is listed as not covered"
)
