package agentjob

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/azp-scaler/azp-scaler/pkg/agentpool"
)

// The containers of ours beside the agent's.
const (
	// ContainerRemove is the native sidecar that takes the registration back.
	ContainerRemove = "remove"
	// ContainerConfigure is the init container that registers the agent.
	ContainerConfigure = "configure"
)

// Where the volumes of ours are mounted; the entrypoint has the same defaults.
const (
	exchangeDir     = "/run/azp"
	tokenDir        = exchangeDir + "/token"
	registrationDir = exchangeDir + "/registration"
	handoverDir     = exchangeDir + "/handover"
	verdictDir      = exchangeDir + "/verdict"
	claimedDir      = exchangeDir + "/claimed"
	accountDir      = "/var/run/secrets/kubernetes.io/serviceaccount"
)

// The names of the volumes of ours.
const (
	volumeToken        = "token"
	volumeRegistration = "registration"
	volumeHandover     = "handover"
	volumeVerdict      = "verdict"
	volumeClaimed      = "claimed"
	volumeAgent        = "agent"
	volumeCA           = "ca"
	volumeProxy        = "proxy"
	volumeAccount      = "service-account"
)

// The probes: started is "registered and listening", ready is "waits for a build".
const (
	probePort    = 14300
	probeStarted = "/started"
	probeReady   = "/ready"
	// probeTimeout is generous: a slow answer on a crowded node is no claim.
	probeTimeout = 5
)

const (
	// removeUID is not the build's, so that no signal and no /proc of the one
	// reaches the other.
	removeUID = 65532
	// entrypoint is found by the image's PATH, as its place is the image's business.
	entrypoint = "agent-entrypoint"
	// accountTokenSeconds is what the API server itself asks for.
	accountTokenSeconds = 3607
	// agentVolumeLimit holds the agent program and its work directory.
	agentVolumeLimit = "20Gi"
	// exchangeLimit bounds the volumes by which the containers hand over.
	exchangeLimit = "1Mi"
)

func ourVolumes() []string {
	return []string{
		volumeToken, volumeRegistration, volumeHandover, volumeVerdict, volumeClaimed, volumeAgent, volumeCA, volumeProxy, volumeAccount,
	}
}

// overlay lays what we set over the class's pod.
func (b *builder) overlay(pod *corev1.PodSpec) {
	pod.RestartPolicy = corev1.RestartPolicyNever
	pod.TerminationGracePeriodSeconds = new(int64(seconds(b.grace)))
	pod.EnableServiceLinks = new(false)
	pod.ServiceAccountName = cmp.Or(b.class.ServiceAccount, b.name)
	pod.DeprecatedServiceAccount = pod.ServiceAccountName
	b.securePod(pod)

	agent := &pod.Containers[slices.IndexFunc(pod.Containers, isAgent)]
	b.overlayAgent(agent)
	b.giveAccount(pod)
	for i := range pod.InitContainers {
		secureContainer(&pod.InitContainers[i])
	}
	for i := range pod.Containers {
		secureContainer(&pod.Containers[i])
	}
	switch {
	case b.jit() && b.settings.AgentSource == SourceDownload:
		pod.InitContainers = append([]corev1.Container{b.download(*agent)}, pod.InitContainers...)
	case !b.jit():
		pod.InitContainers = append([]corev1.Container{b.remove(*agent), b.configure(*agent)}, pod.InitContainers...)
	}
	pod.Volumes = append(pod.Volumes, b.volumes()...)
}

// jit reports whether the scaler registers the agent. The pod then holds no credential of
// the pool's, and no container of ours beside the build's.
func (b *builder) jit() bool { return b.class.Registration == agentpool.RegistrationJIT }

// securePod fills in what the class leaves open, so that the pod passes the Pod
// Security level "restricted". What a class sets itself is its own decision.
func (b *builder) securePod(pod *corev1.PodSpec) {
	if pod.SecurityContext == nil {
		pod.SecurityContext = &corev1.PodSecurityContext{}
	}
	c := pod.SecurityContext
	orNew(&c.RunAsNonRoot, true)
	orNew(&c.RunAsUser, b.settings.UID)
	orNew(&c.RunAsGroup, b.settings.GID)
	// The group that owns the volumes lets every container use them.
	orNew(&c.FSGroup, b.settings.GID)
	if c.SeccompProfile == nil {
		c.SeccompProfile = &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}
	}
}

func secureContainer(container *corev1.Container) {
	if container.SecurityContext == nil {
		container.SecurityContext = &corev1.SecurityContext{}
	}
	c := container.SecurityContext
	if c.Privileged == nil || !*c.Privileged {
		// The API refuses a privileged container that may not gain privileges.
		orNew(&c.AllowPrivilegeEscalation, false)
	}
	if c.Capabilities == nil {
		c.Capabilities = &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}}
	}
}

// orNew sets what is not set.
func orNew[T any](field **T, value T) {
	if *field == nil {
		*field = &value
	}
}

// overlayAgent makes the class's container the one that runs the build.
func (b *builder) overlayAgent(agent *corev1.Container) {
	if len(agent.Command) == 0 && len(agent.Args) == 0 {
		// The init process reaps what builds leave behind.
		agent.Command = []string{"tini", "--", entrypoint, "run"}
	}
	own := map[string]string{
		"AZP_HANDOVER_DIR":  handoverDir,
		"AZP_PROBE_ADDRESS": ":" + strconv.Itoa(probePort),
		"AZP_HANG_LIMIT":    text(b.settings.HangLimit),
		"AZP_REGISTRATION":  string(b.class.Registration),
	}
	mounts := []corev1.VolumeMount{{Name: volumeHandover, MountPath: handoverDir, ReadOnly: true}}
	if !b.jit() {
		own["AZP_VERDICT_DIR"], own["AZP_CLAIMED_DIR"] = verdictDir, claimedDir
		mounts = append(mounts, corev1.VolumeMount{Name: volumeVerdict, MountPath: verdictDir, ReadOnly: true},
			corev1.VolumeMount{Name: volumeClaimed, MountPath: claimedDir})
	}
	b.setEnvironment(agent, own)
	b.callBack(agent)
	agent.VolumeMounts = append(agent.VolumeMounts, slices.Concat(mounts, b.agentMounts(), b.networkMounts())...)
	probe := func(path string, failures int32) *corev1.Probe {
		return &corev1.Probe{
			ProbeHandler: corev1.ProbeHandler{
				HTTPGet: &corev1.HTTPGetAction{Path: path, Port: intstr.FromInt32(probePort), Scheme: corev1.URISchemeHTTP},
			},
			PeriodSeconds:    1,
			TimeoutSeconds:   probeTimeout,
			SuccessThreshold: 1,
			FailureThreshold: failures,
		}
	}
	agent.StartupProbe = probe(probeStarted, seconds(b.settings.StartupLimit))
	agent.ReadinessProbe = probe(probeReady, 1)
	// A build must not be killed because its machine is slow to answer.
	agent.LivenessProbe = nil
	lastWords(agent)
}

// callBack has the pod tell the scaler at once that its agent has a build, where the scaler
// has to disable the agent. The Job's UID says which agent, and who reads it could read Jobs.
func (b *builder) callBack(agent *corev1.Container) {
	ours := []string{"AZP_CALLBACK_URL", "AZP_JOB_UID"}
	agent.Env = slices.DeleteFunc(agent.Env, func(v corev1.EnvVar) bool { return slices.Contains(ours, v.Name) })
	if !b.jit() || b.settings.CallbackURL == "" {
		return
	}
	agent.Env = append(agent.Env,
		corev1.EnvVar{Name: ours[0], Value: strings.ReplaceAll(b.settings.CallbackURL, "$(", "$$(")},
		corev1.EnvVar{Name: ours[1], ValueFrom: &corev1.EnvVarSource{
			FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: "metadata.labels['" + batchv1.ControllerUidLabel + "']"},
		}})
}

// remove is the native sidecar: it is listed first, so that it is there before
// anything is registered and outlives the build.
func (b *builder) remove(agent corev1.Container) corev1.Container {
	always := corev1.ContainerRestartPolicyAlways
	c := corev1.Container{
		Name:            ContainerRemove,
		Image:           agent.Image,
		ImagePullPolicy: agent.ImagePullPolicy,
		Command:         []string{entrypoint, "remove"},
		RestartPolicy:   &always,
		Env:             slices.DeleteFunc(slices.Clone(agent.Env), func(v corev1.EnvVar) bool { return !isProxy(v.Name) }),
		Lifecycle: &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{
			Exec: &corev1.ExecAction{Command: []string{entrypoint, "withdraw"}},
		}},
		Resources: removeResources(agent.Resources),
		SecurityContext: &corev1.SecurityContext{
			RunAsUser:              new(int64(removeUID)),
			RunAsGroup:             new(int64(removeUID)),
			RunAsNonRoot:           new(true),
			ReadOnlyRootFilesystem: new(true),
		},
		VolumeMounts: append([]corev1.VolumeMount{
			{Name: volumeToken, MountPath: tokenDir, ReadOnly: true},
			{Name: volumeRegistration, MountPath: registrationDir, ReadOnly: true},
			{Name: volumeVerdict, MountPath: verdictDir},
			{Name: volumeClaimed, MountPath: claimedDir, ReadOnly: true},
		}, b.networkMounts()...),
	}
	secureContainer(&c)
	b.setEnvironment(&c, map[string]string{
		"AZP_TOKEN_FILE":       tokenDir + "/" + b.settings.TokenKey,
		"AZP_REGISTRATION_DIR": registrationDir,
		"AZP_VERDICT_DIR":      verdictDir,
		"AZP_CLAIMED_DIR":      claimedDir,
	})
	lastWords(&c)
	return c
}

// configure registers the agent and hands over what it needs to run. It has the
// class's environment, as the service matches demands with the capabilities that
// the agent publishes from it.
func (b *builder) configure(agent corev1.Container) corev1.Container {
	agent = *agent.DeepCopy()
	c := corev1.Container{
		Name:            ContainerConfigure,
		Image:           agent.Image,
		ImagePullPolicy: agent.ImagePullPolicy,
		Command:         []string{entrypoint, "configure"},
		Env:             agent.Env,
		EnvFrom:         agent.EnvFrom,
		// As much as the agent, which starts when this has ended: the pod asks for no
		// more because of it.
		Resources: agent.Resources,
		// What it hands over must be the build's to read.
		SecurityContext: asBuild(agent),
		VolumeMounts: slices.Concat([]corev1.VolumeMount{
			{Name: volumeToken, MountPath: tokenDir, ReadOnly: true},
			{Name: volumeRegistration, MountPath: registrationDir},
			{Name: volumeHandover, MountPath: handoverDir},
		}, b.agentMounts(), b.networkMounts()),
	}
	secureContainer(&c)
	ours := []string{"AZP_VERDICT_DIR", "AZP_CLAIMED_DIR", "AZP_PROBE_ADDRESS", "AZP_HANG_LIMIT", "AZP_REGISTRATION"}
	c.Env = slices.DeleteFunc(c.Env, func(v corev1.EnvVar) bool { return slices.Contains(ours, v.Name) })
	b.setEnvironment(&c, map[string]string{
		"AZP_TOKEN_FILE":       tokenDir + "/" + b.settings.TokenKey,
		"AZP_REGISTRATION_DIR": registrationDir,
		"AZP_HANDOVER_DIR":     handoverDir,
		"AZP_CONFIGURE_LIMIT":  text(b.settings.ConfigureLimit),
		"AZP_DOWNLOAD_LIMIT":   text(b.settings.DownloadLimit),
		"AZP_AGENT_VERSION":    b.settings.AgentVersion,
		"AZP_PLATFORM":         b.settings.Platform,
	})
	lastWords(&c)
	return c
}

// asBuild has a container run as the user that the build runs as.
func asBuild(agent corev1.Container) *corev1.SecurityContext {
	return &corev1.SecurityContext{
		RunAsUser:    agent.SecurityContext.RunAsUser,
		RunAsGroup:   agent.SecurityContext.RunAsGroup,
		RunAsNonRoot: agent.SecurityContext.RunAsNonRoot,
	}
}

// setEnvironment puts ours over what the class has set; an empty value leaves
// the variable as it is.
func (b *builder) setEnvironment(container *corev1.Container, own map[string]string) {
	ours := merge(merge(map[string]string{
		"AZP_URL":             b.settings.Identity.URL,
		"AZP_POOL":            b.settings.Identity.Pool.Name,
		"AZP_AGENT_NAME":      b.name,
		"AZP_AGENT_ROOT":      b.settings.AgentRoot,
		"AZP_AGENT_SOURCE":    string(b.settings.AgentSource),
		"AZP_WORK":            b.settings.WorkDir,
		"VSO_AGENT_IGNORE":    b.settings.IgnoredVariables,
		"AZP_GRACE_PERIOD":    text(b.grace),
		"AZP_REMOVE_SHARE":    text(b.settings.RemoveShare),
		"AZP_WITHDRAW_LIMIT":  text(b.settings.WithdrawLimit),
		"AZP_LOG_LEVEL":       b.settings.LogLevel,
		"AZP_LOG_FORMAT":      b.settings.LogFormat,
		"AZP_TERMINATION_LOG": cmp.Or(container.TerminationMessagePath, corev1.TerminationMessagePathDefault),
	}, b.networkEnvironment()), own)
	var names []string
	for name, value := range ours {
		if value != "" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	env := slices.DeleteFunc(slices.Clone(container.Env), func(v corev1.EnvVar) bool { return slices.Contains(names, v.Name) })
	for _, name := range names {
		// A dollar sign would be read as a reference to another variable.
		env = append(env, corev1.EnvVar{Name: name, Value: strings.ReplaceAll(ours[name], "$(", "$$(")})
	}
	container.Env = env
}

// text gives a duration as the entrypoint reads it; none for its own default.
func text(d time.Duration) string {
	if d <= 0 {
		return ""
	}
	return d.String()
}

// removeResources asks for little, and for a limit only where the agent has one:
// a quota that counts limits refuses pods in which a container lacks one.
func removeResources(agent corev1.ResourceRequirements) corev1.ResourceRequirements {
	r := corev1.ResourceRequirements{
		Requests: corev1.ResourceList{
			corev1.ResourceCPU:    resource.MustParse("5m"),
			corev1.ResourceMemory: resource.MustParse("16Mi"),
		},
		Limits: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("128Mi")},
	}
	if _, limited := agent.Limits[corev1.ResourceCPU]; limited {
		r.Limits[corev1.ResourceCPU] = resource.MustParse("100m")
	}
	for _, list := range []struct{ agent, own corev1.ResourceList }{{agent.Requests, r.Requests}, {agent.Limits, r.Limits}} {
		if _, asked := list.agent[corev1.ResourceEphemeralStorage]; asked {
			list.own[corev1.ResourceEphemeralStorage] = resource.MustParse("16Mi")
		}
	}
	return r
}

// lastWords has the container's reason for ending read from a file, never from
// its log, which is the build's.
func lastWords(container *corev1.Container) {
	container.TerminationMessagePath = cmp.Or(container.TerminationMessagePath, corev1.TerminationMessagePathDefault)
	container.TerminationMessagePolicy = corev1.TerminationMessageReadFile
}

// giveAccount mounts the build's ServiceAccount where a client looks for it, but
// in the class's containers only: those that hold the pool's credential need no
// right in the cluster. A class that turned the mount off has none.
func (b *builder) giveAccount(pod *corev1.PodSpec) {
	wanted := pod.AutomountServiceAccountToken == nil || *pod.AutomountServiceAccountToken
	pod.AutomountServiceAccountToken = new(false)
	if !wanted {
		return
	}
	for _, containers := range [][]corev1.Container{pod.InitContainers, pod.Containers} {
		for i := range containers {
			c := &containers[i]
			if !slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return m.MountPath == accountDir }) {
				c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: volumeAccount, MountPath: accountDir, ReadOnly: true})
			}
		}
	}
	pod.Volumes = append(pod.Volumes, corev1.Volume{Name: volumeAccount, VolumeSource: corev1.VolumeSource{
		Projected: &corev1.ProjectedVolumeSource{
			DefaultMode: new(int32(0o644)),
			Sources: []corev1.VolumeProjection{
				{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token", ExpirationSeconds: new(int64(accountTokenSeconds))}},
				{ConfigMap: &corev1.ConfigMapProjection{
					LocalObjectReference: corev1.LocalObjectReference{Name: "kube-root-ca.crt"},
					Items:                []corev1.KeyToPath{{Key: "ca.crt", Path: "ca.crt"}},
				}},
				{DownwardAPI: &corev1.DownwardAPIProjection{Items: []corev1.DownwardAPIVolumeFile{{
					Path:     "namespace",
					FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: "metadata.namespace"},
				}}}},
			},
		},
	}})
}

func (b *builder) agentMounts() []corev1.VolumeMount {
	if b.settings.AgentSource != SourceDownload {
		return nil
	}
	return []corev1.VolumeMount{{Name: volumeAgent, MountPath: b.settings.AgentRoot}}
}

// volumes are those by which the containers hand over, and what they are given.
func (b *builder) volumes() []corev1.Volume {
	var volumes []corev1.Volume
	if b.jit() {
		volumes = append(volumes, secretVolume(volumeHandover, b.name, fileAgent, fileCredentials, fileKey))
	} else {
		volumes = append(volumes, secretVolume(volumeToken, b.settings.TokenSecret, b.settings.TokenKey))
		for _, name := range []string{volumeRegistration, volumeHandover, volumeVerdict, volumeClaimed} {
			volumes = append(volumes, emptyDir(name, corev1.StorageMediumMemory, exchangeLimit))
		}
	}
	if b.settings.AgentSource == SourceDownload {
		volumes = append(volumes, emptyDir(volumeAgent, corev1.StorageMediumDefault, agentVolumeLimit))
	}
	return append(volumes, b.networkVolumes()...)
}

// secretVolume shows keys of a Secret to the volume's group.
func secretVolume(name, secret string, keys ...string) corev1.Volume {
	items := make([]corev1.KeyToPath, 0, len(keys))
	for _, key := range keys {
		items = append(items, corev1.KeyToPath{Key: key, Path: key})
	}
	return corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{
		SecretName: secret, DefaultMode: new(int32(0o440)), Items: items,
	}}}
}

func emptyDir(name string, medium corev1.StorageMedium, limit string) corev1.Volume {
	size := resource.MustParse(limit)
	return corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: medium, SizeLimit: &size}}}
}
