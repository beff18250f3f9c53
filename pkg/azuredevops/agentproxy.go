package azuredevops

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"regexp"
	"strings"
)

// CheckAgentProxy tells what is wrong with the URL of a proxy for the agent program, which is
// stricter than other programs: it passes over one that is not whole (VstsAgentWebProxy of
// its source), and then goes the direct way.
func CheckAgentProxy(text string) error {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https"):
		// The error of url.Parse repeats the text, which may hold a password.
		return errors.New("is no URL of a proxy: want one such as http://proxy.example:3128")
	case u.User != nil:
		return errors.New("has a user or password in it: take it out, the Secret is for that")
	case strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "":
		return errors.New("has more than a host and a port: want one such as http://proxy.example:3128")
	}
	return nil
}

// hostName is a host, or a domain with a dot before it.
var hostName = regexp.MustCompile(`^\.?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$`)

// BypassPatterns translates a list as NO_PROXY has it into the regular expressions by which
// the agent program tells what it reaches directly. It holds them against scheme://host:port,
// without the port where that is the scheme's own (AgentWebProxy of its source). As in Go,
// whose way the scaler and the entrypoint go, a host stands for its subdomains too, and one
// with a dot before it for these alone.
func BypassPatterns(list string) ([]string, error) {
	var (
		patterns []string
		wrong    []error
	)
	for item := range strings.SplitSeq(list, ",") {
		if item = strings.TrimSpace(item); item == "" {
			continue
		}
		pattern, err := bypassPattern(item)
		if err != nil {
			wrong = append(wrong, err)
			continue
		}
		patterns = append(patterns, pattern)
	}
	return patterns, errors.Join(wrong...)
}

func bypassPattern(item string) (string, error) {
	if item == "*" {
		return "^.*$", nil
	}
	if strings.HasPrefix(item, "*.") {
		item = item[1:]
	}
	host, port, found := strings.Cut(item, ":")
	if !hostName.MatchString(host) || found && !allDigits(port) {
		return "", fmt.Errorf("has %q, which the agent program can't be told: want hosts such as tfs.example.com, domains such as .example.com, IPv4 addresses, each with a port or without, or *; no networks", item)
	}
	name := `([^/:]+\.)?` + regexp.QuoteMeta(host)
	if domain, isDomain := strings.CutPrefix(host, "."); isDomain {
		name = `[^/:]+\.` + regexp.QuoteMeta(domain)
	} else if net.ParseIP(host) != nil {
		name = regexp.QuoteMeta(host)
	}
	switch port {
	case "":
		return "^https?://" + name + "(:[0-9]+)?$", nil
	case "443":
		return "^(https://" + name + "|http://" + name + ":443)$", nil
	case "80":
		return "^(http://" + name + "|https://" + name + ":80)$", nil
	default:
		return "^https?://" + name + ":" + port + "$", nil
	}
}

func allDigits(text string) bool {
	return text != "" && strings.Trim(text, "0123456789") == ""
}
