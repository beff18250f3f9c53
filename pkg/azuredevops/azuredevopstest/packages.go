package azuredevopstest

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// downloadPath is where agents are downloaded from, behind the organisation.
const downloadPath = "_packages"

// packageStore knows the agents to download. Their hashes are computed when
// they are first asked for.
type packageStore struct {
	all []*storedPackage
}

type storedPackage struct {
	AgentPackage
	hash func() (string, error)
}

func newPackageStore(all []AgentPackage) packageStore {
	var store packageStore
	for _, p := range all {
		store.all = append(store.all, &storedPackage{p, sync.OnceValues(func() (string, error) { return hashFile(p.Path) })})
	}
	// Newest first, as the service lists them.
	slices.SortStableFunc(store.all, func(a, b *storedPackage) int { return compareVersions(b.Version, a.Version) })
	return store
}

func hashFile(path string) (sum string, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { err = cmp.Or(err, f.Close()) }()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// newest returns the highest version for a platform, or for any.
func (s packageStore) newest(platform string) string {
	for _, p := range s.all {
		if platform == "" || strings.EqualFold(p.Platform, platform) {
			return p.Version
		}
	}
	return ""
}

func (p *storedPackage) filename() string {
	return fmt.Sprintf("vsts-agent-%s-%s.tar.gz", p.Platform, p.Version)
}

// packageJSON is a package as the service writes it.
type packageJSON struct {
	Type        string      `json:"type"`
	Platform    string      `json:"platform"`
	CreatedOn   string      `json:"createdOn"`
	Version     versionJSON `json:"version"`
	DownloadURL string      `json:"downloadUrl"`
	InfoURL     string      `json:"infoUrl"`
	Filename    string      `json:"filename"`
	HashValue   string      `json:"hashValue"`
}

type versionJSON struct {
	Major int `json:"major"`
	Minor int `json:"minor"`
	Patch int `json:"patch"`
}

// packageJSON renders a package. The hash is a SHA-256 in hex, whose case and
// dashes differ with the seed, as callers must not care.
func (c *call) packageJSON(p *storedPackage) (packageJSON, error) {
	hash, err := p.hash()
	if err != nil {
		return packageJSON{}, fail(http.StatusInternalServerError, "VssServiceException", "Package %s %s: %v", p.Platform, p.Version, err)
	}
	if p.WrongHash {
		hash = strings.Repeat("0", 8) + hash[8:]
	}
	switch c.srv.noise("hash", 0) % 3 {
	case 1:
		hash = strings.ToUpper(hash)
	case 2:
		var pairs []string
		for i := 0; i < len(hash); i += 2 {
			pairs = append(pairs, strings.ToUpper(hash[i:i+2]))
		}
		hash = strings.Join(pairs, "-")
	}
	numbers := versionParts(p.Version)
	return packageJSON{
		Type: "agent", Platform: p.Platform, CreatedOn: c.srv.stamp(c.srv.started),
		Version:     versionJSON{numbers[0], numbers[1], numbers[2]},
		DownloadURL: fmt.Sprintf("%s/%s/agent/%s/%s", c.base, downloadPath, p.Version, p.filename()),
		InfoURL:     "https://go.microsoft.com/fwlink/?LinkId=798199",
		Filename:    p.filename(),
		HashValue:   hash,
	}, nil
}

func (c *call) listPackages() error {
	platform := c.vars["platform"]
	if platform == "" {
		platform, _ = c.param("platform")
	}
	top, given, err := c.count("$top")
	if err == nil && !given {
		top, given, err = c.count("top")
	}
	if err != nil {
		return err
	}
	value := []packageJSON{}
	for _, p := range c.srv.packages.all {
		if !strings.EqualFold(c.vars["type"], "agent") || platform != "" && !strings.EqualFold(p.Platform, platform) || given && top > 0 && len(value) == top {
			continue
		}
		j, err := c.packageJSON(p)
		if err != nil {
			return err
		}
		value = append(value, j)
	}
	return c.reply(http.StatusOK, list{len(value), value})
}

func (c *call) getPackage() error {
	for _, p := range c.srv.packages.all {
		if strings.EqualFold(c.vars["type"], "agent") && strings.EqualFold(p.Platform, c.vars["platform"]) && p.Version == c.vars["version"] {
			j, err := c.packageJSON(p)
			if err != nil {
				return err
			}
			return c.reply(http.StatusOK, j)
		}
	}
	return fail(http.StatusNotFound, "PackageNotFoundException", "No package found for %s %s.", c.vars["platform"], c.vars["version"])
}

// downloadPackage streams a tarball. Mostly it needs no sign-in, as the service's
// downloads come from a public network.
func (c *call) downloadPackage() error {
	for _, p := range c.srv.packages.all {
		if p.Version != c.vars["version"] || !strings.EqualFold(p.filename(), c.vars["filename"]) {
			continue
		}
		info, err := os.Stat(p.Path)
		if err != nil {
			return fail(http.StatusInternalServerError, "VssServiceException", "Package %s %s: %v", p.Platform, p.Version, err)
		}
		c.w.Header().Set("Content-Type", "application/octet-stream")
		c.w.Header().Set("Content-Length", strconv.FormatInt(info.Size(), 10))
		c.answer = answer{status: http.StatusOK, stream: func(w io.Writer) (err error) {
			f, err := os.Open(p.Path)
			if err != nil {
				return err
			}
			defer func() { err = cmp.Or(err, f.Close()) }()
			_, err = io.Copy(w, f)
			return err
		}}
		return nil
	}
	return controllerNotFound(c.r.URL.Path)
}
