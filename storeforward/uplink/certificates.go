package uplink

import (
	"context"
	"fmt"
	"time"

	"holdfast/storeforward/uplink/dial"
)

// CertificateStatus is one certificate, ours or the cloud's.
type CertificateStatus struct {
	Subject   string    `json:"subject"`
	NotBefore time.Time `json:"not_before"`
	NotAfter  time.Time `json:"not_after"`
	// Error says why the files cannot be used; the times are then those of the
	// last that could.
	Error string `json:"error,omitempty"`
	// Warning says that its end is near, or what else is wrong with its time.
	Warning string `json:"warning,omitempty"`
}

// CertificateNotice is how long before its end a certificate is warned of: 21 days,
// less than the third of 90 days at which they are commonly renewed. One that lives
// for less is warned of in its last quarter.
func CertificateNotice(notBefore, notAfter time.Time) time.Duration {
	return min(21*24*time.Hour, notAfter.Sub(notBefore)/4)
}

// warn says what is wrong with the certificate's time; empty is nothing.
func (c *CertificateStatus) warn(now time.Time) string {
	notice := CertificateNotice(c.NotBefore, c.NotAfter)
	switch left := c.NotAfter.Sub(now); {
	case c.NotAfter.IsZero():
		return ""
	case now.Before(c.NotBefore):
		return fmt.Sprintf("is not valid before %s, or our clock is wrong (%s)", utc(c.NotBefore), utc(now))
	case left < 0:
		return "expired on " + utc(c.NotAfter)
	case left < 48*time.Hour && left < notice:
		return fmt.Sprintf("expires in %d hours, on %s", int(left/time.Hour), utc(c.NotAfter))
	case left < notice:
		return fmt.Sprintf("expires in %d days, on %s", int(left/(24*time.Hour)), utc(c.NotAfter))
	}
	return ""
}

// certificateStatus is that of c, or old when there is none.
func certificateStatus(old *CertificateStatus, c *dial.Certificate) *CertificateStatus {
	if c == nil {
		return old
	}
	return &CertificateStatus{Subject: c.Subject, NotBefore: c.NotBefore, NotAfter: c.NotAfter}
}

const (
	certificateLook = time.Hour      // between two looks at our file
	certificateSay  = 24 * time.Hour // between two lines in the log
)

// watchCertificates looks at our certificate file now and then, so that one
// that runs out, or was renewed wrongly, is known before the next connection
// needs it, and warns of the end of both. It returns when ctx ends.
func (u *Uplink) watchCertificates(ctx context.Context) {
	ticker := time.NewTicker(certificateLook)
	defer ticker.Stop()
	var said time.Time
	for {
		u.lookAtOwn()
		if now := time.Now(); said.IsZero() || now.Sub(said) >= certificateSay {
			if u.warnOfCertificates(now) {
				said = now
			}
		}
		select {
		case <-ticker.C:
		case <-u.shown:
		case <-ctx.Done():
			return
		}
	}
}

// lookAtOwn reads our certificate file.
func (u *Uplink) lookAtOwn() {
	own, err := u.opts.Own()
	u.mu.Lock()
	defer u.mu.Unlock()
	if err == nil {
		u.status.OwnCertificate = certificateStatus(u.status.OwnCertificate, own)
		return
	}
	bad := CertificateStatus{Error: err.Error()}
	if old := u.status.OwnCertificate; old != nil {
		bad.Subject, bad.NotBefore, bad.NotAfter = old.Subject, old.NotBefore, old.NotAfter
	}
	u.status.OwnCertificate = &bad
}

// warnOfCertificates says whether there was something to say.
func (u *Uplink) warnOfCertificates(now time.Time) (said bool) {
	u.mu.Lock()
	own, cloud := u.status.OwnCertificate, u.status.CloudCertificate
	u.mu.Unlock()
	if own != nil && own.Error != "" {
		u.log.Error("own certificate not usable", "err", own.Error)
		said = true
	}
	for whose, c := range map[string]*CertificateStatus{"own": own, "cloud": cloud} {
		if c == nil {
			continue
		}
		if text := c.warn(now); text != "" {
			u.log.Warn("certificate needs a look", "whose", whose, "subject", c.Subject, "reason", text)
			said = true
		}
	}
	return said
}

// copyWith is what a snapshot shows.
func (c *CertificateStatus) copyWith(now time.Time) *CertificateStatus {
	if c == nil {
		return nil
	}
	shown := *c
	shown.Warning = c.warn(now)
	return &shown
}
