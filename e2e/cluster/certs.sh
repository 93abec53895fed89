# shellcheck shell=bash
# Sourced: the certificates of the cluster, all by one authority of its own, and the clients' kubeconfigs.

# certificate NAME SUBJECT [OPTION-OF-OPENSSL…]
certificate() {
	local name=$1 subject=$2
	shift 2
	openssl req -x509 -config "$certs/openssl.cnf" -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 \
		-subj "$subject" -keyout "$certs/$name.key" -out "$certs/$name.crt" "$@" 2>>"$state/log/openssl.log" ||
		blame openssl "made no certificate for $name"
}

client() {
	certificate "$1" "$2" -CA "$certs/ca.crt" -CAkey "$certs/ca.key" -addext extendedKeyUsage=clientAuth
	cat >"$state/$1.kubeconfig" <<-END
		apiVersion: v1
		kind: Config
		clusters:
		- { name: e2e, cluster: { server: "$api", certificate-authority: $certs/ca.crt } }
		users:
		- { name: $1, user: { client-certificate: $certs/$1.crt, client-key: $certs/$1.key } }
		contexts:
		- { name: e2e, context: { cluster: e2e, user: $1 } }
		current-context: e2e
	END
}

server() {
	certificate "$1" "/CN=$1" -CA "$certs/ca.crt" -CAkey "$certs/ca.key" -addext extendedKeyUsage=serverAuth \
		-addext "subjectAltName=$2"
}

make_certificates() {
	local node
	install -d -m 700 "$certs"
	# The machine's own settings would make every certificate an authority.
	printf '[req]\ndistinguished_name = name\n[name]\n' >"$certs/openssl.cnf"
	certificate ca /CN=tcptracer-e2e -addext basicConstraints=critical,CA:true -addext keyUsage=critical,keyCertSign
	openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$certs/service-accounts.key"
	openssl pkey -in "$certs/service-accounts.key" -pubout -out "$certs/service-accounts.pub"

	client admin /O=system:masters/CN=admin
	client apiserver-kubelet-client /O=system:masters/CN=apiserver
	client controller-manager /CN=system:kube-controller-manager
	client scheduler /CN=system:kube-scheduler
	client proxy /CN=system:kube-proxy
	# Pods know the API server by the first address of the services.
	server apiserver "IP:$(address_of node1),IP:127.0.0.1,IP:${services%.*}.1,DNS:kubernetes.default.svc,DNS:node1"
	for node in "${nodes[@]}"; do
		client "$node" "/O=system:nodes/CN=system:node:$node"
		# Pods can check a kubelet by the authority that they are given with their token.
		server "kubelet-$node" "IP:$(address_of "$node"),DNS:$node"
	done
}
