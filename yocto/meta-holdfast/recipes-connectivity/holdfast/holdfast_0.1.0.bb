SUMMARY = "MQTT gateway that loses nothing it has acknowledged"
DESCRIPTION = "Holdfast speaks MQTT to local clients, reads Modbus and serial devices, \
keeps what must not be lost in SQLite and sends it on to a cloud broker over a \
link that comes and goes."
SECTION = "net"

# Holdfast's own; the second file adds those of the modules inside the binary.
LICENSE = "Apache-2.0"
LIC_FILES_CHKSUM = "file://src/${GO_IMPORT}/LICENSE;md5=19cbd64715b51267a47bf3750cc6a8a5"
require ${BPN}-licenses.inc

# HOLDFAST_GIT and HOLDFAST_SRCREV have their defaults in conf/layer.conf. The
# modules are listed with their checksums: do_compile needs no network.
SRC_URI = "${HOLDFAST_GIT};destsuffix=${GO_SRCURI_DESTSUFFIX}"
SRCREV = "${HOLDFAST_SRCREV}"
require ${BPN}-go-mods.inc

GO_IMPORT = "holdfast"
GO_INSTALL = "${GO_IMPORT}/cmd/holdfast"
# One file that holds everything, as on every other board.
GO_LINKSHARED = ""
# Go's runtime has assembler files that do not survive -mthumb: the program dies
# at its start.
ARM_INSTRUCTION_SET = "arm"

# Not -s -w: what is stripped here goes to holdfast-dbg.
GO_EXTRA_LDFLAGS = "-X main.version=${PV} -X main.commit=${HOLDFAST_COMMIT}"
HOLDFAST_COMMIT = "${@'unknown' if 'AUTOINC' in d.getVar('SRCREV') else d.getVar('SRCREV')[:12]}"

inherit go-mod systemd useradd

# The tags and SQLite options of the Makefile. SQLite lies in go-sqlite3's
# module; the system's is not used, so that what is tested is what runs.
GOBUILDFLAGS:append = " -tags=netgo,osusergo,sqlite_omit_load_extension,nethttpomithttp2"
CGO_CFLAGS:append = " -fno-asynchronous-unwind-tables -fno-unwind-tables -ffunction-sections -fdata-sections -DSQLITE_DQS=0 -DSQLITE_DEFAULT_MEMSTATUS=0 -DSQLITE_OMIT_DEPRECATED -DSQLITE_OMIT_SHARED_CACHE -Wp,-USQLITE_ENABLE_FTS3 -Wp,-USQLITE_ENABLE_FTS3_PARENTHESIS -Wp,-USQLITE_ENABLE_RTREE"

SYSTEMD_SERVICE:${PN} = "holdfast.service"

USERADD_PACKAGES = "${PN}"
GROUPADD_PARAM:${PN} = "--system holdfast"
# dialout, which owns the serial lines, is in base-passwd.
USERADD_PARAM:${PN} = "--system --gid holdfast --groups dialout --home-dir ${localstatedir}/lib/holdfast --no-create-home --shell ${base_sbindir}/nologin holdfast"

do_install:append() {
    source=${S}/src/${GO_IMPORT}

    install -D -m 0644 $source/systemd/holdfast.service ${D}${systemd_system_unitdir}/holdfast.service
    install -D -m 0644 $source/systemd/holdfast.tmpfiles ${D}${nonarch_libdir}/tmpfiles.d/holdfast.conf

    # The configuration may hold passwords: holdfast reads it, nobody else.
    install -d -m 0750 -g holdfast ${D}${sysconfdir}/holdfast ${D}${sysconfdir}/holdfast/holdfast.d
    install -m 0640 -g holdfast $source/packaging/holdfast.toml ${D}${sysconfdir}/holdfast/holdfast.toml

    # go.bbclass installs the sources for packages that others build against;
    # nobody builds against a daemon.
    rm -rf ${D}${libdir}/go
}

CONFFILES:${PN} = "${sysconfdir}/holdfast/holdfast.toml"
FILES:${PN} += "${systemd_system_unitdir} ${nonarch_libdir}/tmpfiles.d"

# Public certificates for mqtts://; the drivers of USB serial adapters, which
# the unit loads before DeviceAllow= is resolved.
RRECOMMENDS:${PN} += "ca-certificates kernel-module-usbserial kernel-module-ftdi-sio kernel-module-cdc-acm"
