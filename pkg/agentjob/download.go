package agentjob

import (
	"slices"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
)

// ContainerDownload is the init container that gets the agent program where no container of
// the pod may ask the service for it.
const ContainerDownload = "download"

// ProgramOf tells for which platform, and in which version, a class's pods want the agent
// program: what the settings say, or else the class by the same variables that a pod which
// registers its own agent obeys. Empty is the node's platform, and the newest version.
func ProgramOf(s Settings, template batchv1.JobTemplateSpec) (platform, version string) {
	platform, version = s.Platform, s.AgentVersion
	containers := template.Spec.Template.Spec.Containers
	if i := slices.IndexFunc(containers, isAgent); i >= 0 {
		for _, variable := range containers[i].Env {
			switch {
			case variable.Name == "AZP_PLATFORM" && s.Platform == "":
				platform = variable.Value
			case variable.Name == "AZP_AGENT_VERSION" && s.AgentVersion == "":
				version = variable.Value
			}
		}
	}
	return platform, version
}

// checkPackage refuses a package that a pod could not download.
func checkPackage(p Package, bad func(format string, args ...any)) {
	if p.URL == "" || p.SHA256 == "" || p.Version == "" {
		bad("the agent program's package is not known: version %q at %q with the SHA-256 %q", p.Version, p.URL, p.SHA256)
	}
}

// download is like the first half of configure, and is told what that would have asked for.
func (b *builder) download(agent corev1.Container) corev1.Container {
	agent = *agent.DeepCopy()
	c := corev1.Container{
		Name:            ContainerDownload,
		Image:           agent.Image,
		ImagePullPolicy: agent.ImagePullPolicy,
		Command:         []string{entrypoint, "download"},
		Env:             slices.DeleteFunc(agent.Env, func(v corev1.EnvVar) bool { return !isProxy(v.Name) }),
		// As much as the agent, which starts when this has ended.
		Resources: agent.Resources,
		// The agent program must be the build's: it updates itself.
		SecurityContext: asBuild(agent),
		VolumeMounts:    slices.Concat(b.agentMounts(), b.networkMounts()),
	}
	secureContainer(&c)
	b.setEnvironment(&c, map[string]string{
		"AZP_PLATFORM":       b.settings.Package.Platform,
		"AZP_PACKAGE_URL":    b.settings.Package.URL,
		"AZP_PACKAGE_SHA256": b.settings.Package.SHA256,
		"AZP_AGENT_VERSION":  b.settings.Package.Version,
		"AZP_DOWNLOAD_LIMIT": text(b.settings.DownloadLimit),
	})
	lastWords(&c)
	return c
}
