import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;

import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.AlterConfigOp;
import org.apache.kafka.clients.admin.ConfigEntry;
import org.apache.kafka.clients.admin.ListOffsetsResult;
import org.apache.kafka.clients.admin.NewPartitionReassignment;
import org.apache.kafka.clients.admin.NewPartitions;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.admin.OffsetSpec;
import org.apache.kafka.clients.admin.RecordsToDelete;
import org.apache.kafka.clients.admin.TopicDescription;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.producer.Callback;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.ElectionType;
import org.apache.kafka.common.Node;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.TopicPartitionInfo;
import org.apache.kafka.common.config.ConfigResource;
import org.apache.kafka.common.header.internals.RecordHeader;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;

import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Collection;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Properties;
import java.util.Random;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;
import java.util.concurrent.atomic.AtomicReference;

/**
 * What a real Kafka client does to a cluster, at the harness's word: one JSON request a line on standard input,
 * one JSON answer a line on standard output, matched by {@code id}. Each request has a thread of its own, so a
 * slow one holds up nobody. The process ends when its standard input does.
 */
public final class Load {
    private static final ObjectMapper JSON = new ObjectMapper();
    private static final PrintStream OUT = System.out;

    private final String bootstrap;
    private final Admin admin;
    private final Map<String, Production> running = new ConcurrentHashMap<>();
    private final Map<String, KafkaProducer<byte[], byte[]>> open = new ConcurrentHashMap<>();

    private Load(String bootstrap) {
        this.bootstrap = bootstrap;
        Properties p = new Properties();
        p.put("bootstrap.servers", bootstrap);
        p.put("default.api.timeout.ms", "90000");
        p.put("request.timeout.ms", "15000");
        p.put("metadata.max.age.ms", "1000");
        p.put("reconnect.backoff.max.ms", "500");
        this.admin = Admin.create(p);
    }

    public static void main(String[] args) throws Exception {
        Load load = new Load(args[0]);
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = in.readLine(); line != null; line = in.readLine()) {
            JsonNode request = JSON.readTree(line);
            Thread worker = new Thread(() -> load.answer(request), request.get("verb").asText());
            worker.setDaemon(true);
            worker.start();
        }
        System.exit(0);
    }

    private void answer(JsonNode request) {
        ObjectNode answer = JSON.createObjectNode();
        answer.set("id", request.get("id"));
        try {
            answer.set("ok", perform(request.get("verb").asText(), request));
        } catch (Throwable t) {
            Throwable cause = t.getCause() == null ? t : t.getCause();
            answer.put("error", request.get("verb").asText() + ": " + cause);
            t.printStackTrace();
        }
        synchronized (OUT) {
            OUT.println(answer);
            OUT.flush();
        }
    }

    private JsonNode perform(String verb, JsonNode r) throws Exception {
        return switch (verb) {
            case "create" -> create(r);
            case "delete" -> delete(r);
            case "topics" -> topics();
            case "describe" -> describe(r.get("topic").asText());
            case "add-partitions" -> addPartitions(r);
            case "delete-records" -> deleteRecords(r);
            case "alter" -> alter(r);
            case "offsets" -> offsets(r.get("topic").asText());
            case "elect" -> elect(r);
            case "reassign" -> reassign(r);
            case "brokers" -> brokers();
            case "count" -> count(r);
            case "produce" -> new Production(r).runToEnd();
            case "start" -> start(r);
            case "progress" -> running.get(r.get("name").asText()).report();
            case "stop" -> running.remove(r.get("name").asText()).stop();
            case "finish" -> finish(r);
            case "stop-all" -> stopAll();
            default -> throw new IllegalArgumentException("no such verb");
        };
    }

    // ---- topics -------------------------------------------------------------------------------------------

    private JsonNode create(JsonNode r) throws Exception {
        String name = r.get("topic").asText();
        Map<String, String> configs = new HashMap<>();
        if (r.has("configs")) {
            r.get("configs").properties().forEach(f -> configs.put(f.getKey(), f.getValue().asText()));
        }
        NewTopic topic;
        if (r.has("assignment")) {
            Map<Integer, List<Integer>> assignment = new HashMap<>();
            int partition = 0;
            for (JsonNode replicas : r.get("assignment")) {
                List<Integer> ids = new ArrayList<>();
                replicas.forEach(id -> ids.add(id.asInt()));
                assignment.put(partition++, ids);
            }
            topic = new NewTopic(name, assignment);
        } else {
            topic = new NewTopic(name, Optional.of(r.get("partitions").asInt()),
                Optional.of((short) r.get("replication").asInt()));
        }
        admin.createTopics(List.of(topic.configs(configs))).all().get();
        return awaitTopic(name, topic.numPartitions() > 0 ? topic.numPartitions() : r.get("assignment").size());
    }

    /** Waits until each partition has a leader and all its replicas in sync. */
    private JsonNode awaitTopic(String name, int partitions) throws Exception {
        long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(60);
        while (true) {
            try {
                List<TopicPartitionInfo> all = topic(name).partitions();
                boolean whole = all.size() == partitions && all.stream().allMatch(p ->
                    p.leader() != null && p.leader().id() >= 0 && p.isr().size() == p.replicas().size());
                if (whole) {
                    offsets(name);
                    return describe(name);
                }
            } catch (java.util.concurrent.ExecutionException notYet) {
                if (System.nanoTime() > deadline) throw notYet;
            }
            if (System.nanoTime() > deadline) throw new IllegalStateException(name + " is not whole after 60 s");
            Thread.sleep(100);
        }
    }

    private JsonNode delete(JsonNode r) throws Exception {
        String name = r.get("topic").asText();
        admin.deleteTopics(List.of(name)).all().get();
        long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(60);
        while (admin.listTopics().names().get().contains(name)) {
            if (System.nanoTime() > deadline) throw new IllegalStateException(name + " is still listed after 60 s");
            Thread.sleep(100);
        }
        return JSON.createObjectNode();
    }

    /** All topics that are not internal. */
    private JsonNode topics() throws Exception {
        ObjectNode out = JSON.createObjectNode();
        ArrayNode names = out.putArray("names");
        admin.listTopics().names().get().stream().sorted().forEach(names::add);
        return out;
    }

    private TopicDescription topic(String name) throws Exception {
        return admin.describeTopics(List.of(name)).allTopicNames().get().get(name);
    }

    private JsonNode describe(String name) throws Exception {
        TopicDescription topic = topic(name);
        ObjectNode out = JSON.createObjectNode();
        out.put("topic", name);
        out.put("topic_id", topic.topicId().toString());
        java.util.UUID uuid = new java.util.UUID(topic.topicId().getMostSignificantBits(),
            topic.topicId().getLeastSignificantBits());
        out.put("topic_uuid", uuid.toString());
        ArrayNode partitions = out.putArray("partitions");
        for (TopicPartitionInfo p : topic.partitions()) {
            ObjectNode one = partitions.addObject();
            one.put("partition", p.partition());
            one.put("leader", p.leader() == null ? -1 : p.leader().id());
            ids(one.putArray("replicas"), p.replicas());
            ids(one.putArray("isr"), p.isr());
        }
        return out;
    }

    private static void ids(ArrayNode into, Collection<Node> nodes) {
        nodes.forEach(n -> into.add(n.id()));
    }

    private JsonNode addPartitions(JsonNode r) throws Exception {
        String name = r.get("topic").asText();
        int total = r.get("total").asInt();
        admin.createPartitions(Map.of(name, NewPartitions.increaseTo(total))).all().get();
        return awaitTopic(name, total);
    }

    private JsonNode deleteRecords(JsonNode r) throws Exception {
        TopicPartition tp = new TopicPartition(r.get("topic").asText(), r.get("partition").asInt());
        long low = admin.deleteRecords(Map.of(tp, RecordsToDelete.beforeOffset(r.get("before").asLong())))
            .lowWatermarks().get(tp).get().lowWatermark();
        return JSON.createObjectNode().put("low_watermark", low);
    }

    private JsonNode alter(JsonNode r) throws Exception {
        ConfigResource topic = new ConfigResource(ConfigResource.Type.TOPIC, r.get("topic").asText());
        List<AlterConfigOp> ops = new ArrayList<>();
        r.get("configs").properties().forEach(f -> ops.add(new AlterConfigOp(
            new ConfigEntry(f.getKey(), f.getValue().asText()), AlterConfigOp.OpType.SET)));
        admin.incrementalAlterConfigs(Map.of(topic, ops)).all().get();
        return JSON.createObjectNode();
    }

    private JsonNode elect(JsonNode r) throws Exception {
        TopicPartition tp = new TopicPartition(r.get("topic").asText(), r.get("partition").asInt());
        ElectionType type = r.get("unclean").asBoolean() ? ElectionType.UNCLEAN : ElectionType.PREFERRED;
        admin.electLeaders(type, Set.of(tp)).all().get();
        return describe(tp.topic());
    }

    /** Has all partitions of a topic kept by these nodes from now on; does not wait until they have them. */
    private JsonNode reassign(JsonNode r) throws Exception {
        String name = r.get("topic").asText();
        List<Integer> nodes = new ArrayList<>();
        r.get("nodes").forEach(id -> nodes.add(id.asInt()));
        Map<TopicPartition, Optional<NewPartitionReassignment>> all = new HashMap<>();
        for (TopicPartitionInfo p : topic(name).partitions()) {
            all.put(new TopicPartition(name, p.partition()), Optional.of(new NewPartitionReassignment(nodes)));
        }
        admin.alterPartitionReassignments(all).all().get();
        return JSON.createObjectNode();
    }

    private JsonNode brokers() throws Exception {
        ObjectNode out = JSON.createObjectNode();
        ids(out.putArray("ids"), admin.describeCluster().nodes().get());
        out.put("cluster_id", admin.describeCluster().clusterId().get());
        return out;
    }

    /** Per partition the first offset and the end: the high watermark, as a read_uncommitted consumer sees it. */
    private JsonNode offsets(String name) throws Exception {
        int partitions = topic(name).partitions().size();
        Map<TopicPartition, OffsetSpec> first = new HashMap<>();
        Map<TopicPartition, OffsetSpec> end = new HashMap<>();
        for (int p = 0; p < partitions; p++) {
            first.put(new TopicPartition(name, p), OffsetSpec.earliest());
            end.put(new TopicPartition(name, p), OffsetSpec.latest());
        }
        ListOffsetsResult firsts = admin.listOffsets(first);
        ListOffsetsResult ends = admin.listOffsets(end);
        ObjectNode out = JSON.createObjectNode();
        ArrayNode start = out.putArray("start");
        ArrayNode stop = out.putArray("end");
        for (int p = 0; p < partitions; p++) {
            TopicPartition tp = new TopicPartition(name, p);
            start.add(firsts.partitionResult(tp).get().offset());
            stop.add(ends.partitionResult(tp).get().offset());
        }
        return out;
    }

    /** Consumes a topic from its first offset to its end and counts what a client is given. */
    private JsonNode count(JsonNode r) throws Exception {
        String name = r.get("topic").asText();
        Properties p = new Properties();
        p.put("bootstrap.servers", bootstrap);
        p.put("isolation.level", r.get("isolation").asText());
        p.put("key.deserializer", ByteArrayDeserializer.class.getName());
        p.put("value.deserializer", ByteArrayDeserializer.class.getName());
        p.put("max.partition.fetch.bytes", "8388608");
        long records = 0;
        long nullKeys = 0;
        long nullValues = 0;
        long headers = 0;
        long distinct = 0;
        Set<String> timestampTypes = new HashSet<>();
        try (KafkaConsumer<byte[], byte[]> consumer = new KafkaConsumer<>(p)) {
            List<TopicPartition> all = new ArrayList<>();
            consumer.partitionsFor(name).forEach(i -> all.add(new TopicPartition(name, i.partition())));
            consumer.assign(all);
            consumer.seekToBeginning(all);
            Map<TopicPartition, Long> ends = consumer.endOffsets(all);
            Set<String> keys = new HashSet<>();
            long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(60);
            while (all.stream().anyMatch(tp -> consumer.position(tp) < ends.get(tp))) {
                if (System.nanoTime() > deadline) throw new IllegalStateException("not at the end after 60 s");
                for (ConsumerRecord<byte[], byte[]> record : consumer.poll(Duration.ofMillis(200))) {
                    records++;
                    if (record.key() == null) nullKeys++;
                    else keys.add(new String(record.key(), StandardCharsets.ISO_8859_1));
                    if (record.value() == null) nullValues++;
                    if (record.headers().iterator().hasNext()) headers++;
                    timestampTypes.add(record.timestampType().name);
                }
            }
            distinct = keys.size();
        }
        ObjectNode out = JSON.createObjectNode();
        out.put("records", records).put("null_keys", nullKeys).put("null_values", nullValues);
        out.put("with_headers", headers).put("distinct_keys", distinct);
        timestampTypes.forEach(out.putArray("timestamp_types")::add);
        return out;
    }

    // ---- producing ----------------------------------------------------------------------------------------

    private JsonNode start(JsonNode r) {
        Production production = new Production(r);
        if (running.putIfAbsent(r.get("name").asText(), production) != null) {
            throw new IllegalStateException("already running");
        }
        production.startThread();
        return JSON.createObjectNode();
    }

    /** Ends what a scenario that failed left running, whatever becomes of it. */
    private JsonNode stopAll() {
        for (String name : running.keySet()) {
            try {
                running.remove(name).stop();
            } catch (Exception e) {
                e.printStackTrace();
            }
        }
        return JSON.createObjectNode();
    }

    /** Ends a transaction that a production left open. */
    private JsonNode finish(JsonNode r) {
        try (KafkaProducer<byte[], byte[]> producer = open.remove(r.get("transactional_id").asText())) {
            if (r.get("commit").asBoolean()) producer.commitTransaction();
            else producer.abortTransaction();
        }
        return JSON.createObjectNode();
    }

    /** One run of one producer, of so many records or until it is told to stop. */
    private final class Production implements Callback {
        private final String topic;
        private final int partitions;
        private final int firstPartition;
        private final long recordsMax;
        private final int valueBytes;
        private final boolean sameSize;
        private final boolean headers;
        private final boolean nulls;
        private final int keys;
        private final int abortPercent;
        private final int recordsPerTransaction;
        private final long recordsPerSecond;
        private final long ageMs;
        private final String transactionalId;
        private final boolean leaveOpen;
        private final boolean tolerant;
        private final Random random;
        private final Properties config = new Properties();
        private final AtomicLong acknowledged = new AtomicLong();
        private final AtomicLong failed = new AtomicLong();
        private final AtomicReference<Throwable> failure = new AtomicReference<>();
        private long committed;
        private long aborted;
        private long sent;
        private volatile boolean stopping;
        private Thread thread;

        Production(JsonNode r) {
            topic = r.get("topic").asText();
            partitions = r.path("partitions").asInt(1);
            firstPartition = r.path("first_partition").asInt(0);
            recordsMax = r.path("records").asLong(Long.MAX_VALUE);
            valueBytes = r.path("value_bytes").asInt(200);
            sameSize = r.path("same_size").asBoolean(false);
            headers = r.path("headers").asBoolean(false);
            nulls = r.path("nulls").asBoolean(false);
            keys = r.path("keys").asInt(0);
            abortPercent = r.path("abort_percent").asInt(0);
            recordsPerTransaction = r.path("records_per_transaction").asInt(100);
            recordsPerSecond = r.path("records_per_second").asLong(0);
            ageMs = r.path("age_ms").asLong(0);
            transactionalId = r.path("transactional_id").asText(null);
            leaveOpen = r.path("leave_open").asBoolean(false);
            tolerant = r.path("tolerant").asBoolean(false);
            random = new Random(r.path("seed").asLong(1));
            config.put("bootstrap.servers", bootstrap);
            config.put("key.serializer", ByteArraySerializer.class.getName());
            config.put("value.serializer", ByteArraySerializer.class.getName());
            config.put("compression.type", r.path("codec").asText("none"));
            config.put("acks", r.path("acks").asText("all"));
            config.put("enable.idempotence", String.valueOf(r.path("idempotent").asBoolean(false)));
            config.put("batch.size", r.path("batch_bytes").asText("16384"));
            config.put("linger.ms", r.path("linger_ms").asText("5"));
            config.put("max.request.size", "8388608");
            config.put("buffer.memory", "67108864");
            config.put("metadata.max.age.ms", "1000");
            config.put("request.timeout.ms", "10000");
            // A broker may be kept waiting for its turn on a machine that is busy.
            config.put("delivery.timeout.ms", "300000");
            config.put("max.block.ms", "90000");
            config.put("reconnect.backoff.max.ms", "500");
            if (transactionalId != null) {
                config.put("enable.idempotence", "true");
                config.put("transactional.id", transactionalId);
                config.put("transaction.timeout.ms", "60000");
            }
        }

        void startThread() {
            thread = new Thread(() -> {
                try {
                    run();
                } catch (Throwable t) {
                    failure.compareAndSet(null, t);
                }
            }, "produce " + topic);
            thread.setDaemon(true);
            thread.start();
        }

        JsonNode runToEnd() {
            run();
            return outcome();
        }

        JsonNode stop() throws InterruptedException {
            stopping = true;
            thread.join();
            return outcome();
        }

        private JsonNode outcome() {
            if (failure.get() != null && !tolerant) {
                throw new IllegalStateException(report().toString(), failure.get());
            }
            return report();
        }

        ObjectNode report() {
            ObjectNode out = JSON.createObjectNode();
            out.put("acknowledged", acknowledged.get()).put("failed", failed.get());
            out.put("committed", committed).put("aborted", aborted);
            return out;
        }

        private void run() {
            KafkaProducer<byte[], byte[]> producer = new KafkaProducer<>(config);
            boolean kept = false;
            try {
                if (transactionalId == null) {
                    sendMany(producer, recordsMax);
                    producer.flush();
                } else {
                    kept = runTransactions(producer);
                }
            } finally {
                if (!kept) producer.close(Duration.ofSeconds(90));
            }
        }

        /** Whether a transaction was left open, with its producer kept under its transactional id. */
        private boolean runTransactions(KafkaProducer<byte[], byte[]> producer) {
            producer.initTransactions();
            while (sent < recordsMax && !stopping) {
                producer.beginTransaction();
                sendMany(producer, Math.min(sent + recordsPerTransaction, recordsMax));
                producer.flush(); // What is aborted must first be in the log.
                if (leaveOpen && sent >= recordsMax) {
                    open.put(transactionalId, producer);
                    return true;
                }
                // Thirty of each hundred, spread and not drawn: so a short run has its share too.
                boolean abort = ((committed + aborted) * 37 + 11) % 100 < abortPercent;
                if (abort) {
                    producer.abortTransaction();
                    aborted++;
                } else {
                    producer.commitTransaction();
                    committed++;
                }
            }
            return false;
        }

        private void sendMany(KafkaProducer<byte[], byte[]> producer, long until) {
            long started = System.nanoTime();
            long before = sent;
            while (sent < until && !stopping && (tolerant || failure.get() == null)) {
                producer.send(record(sent), this);
                sent++;
                if (recordsPerSecond > 0) {
                    long due = started + (sent - before) * 1_000_000_000L / recordsPerSecond;
                    long early = due - System.nanoTime();
                    if (early > 1_000_000) java.util.concurrent.locks.LockSupport.parkNanos(early);
                }
            }
        }

        private ProducerRecord<byte[], byte[]> record(long n) {
            byte[] value = new byte[sameSize ? valueBytes : valueBytes / 2 + random.nextInt(valueBytes)];
            random.nextBytes(value);
            for (int i = 0; i + 8 < value.length; i += 16) { // Half noise, half not: so that codecs have work.
                java.util.Arrays.fill(value, i, i + 8, (byte) 'u');
            }
            byte[] key = ("key-" + (keys > 0 ? random.nextInt(keys) : n)).getBytes(StandardCharsets.UTF_8);
            int partition = firstPartition + (int) (n % partitions);
            ProducerRecord<byte[], byte[]> record = new ProducerRecord<>(topic, partition,
                ageMs > 0 ? System.currentTimeMillis() - ageMs : null,
                nulls && n % 7 == 3 ? null : key, nulls && n % 5 == 2 ? null : value);
            if (headers) {
                for (int i = 0; i < n % 4; i++) {
                    record.headers().add(new RecordHeader("header-" + i,
                        i == 2 ? null : ("of " + n).getBytes(StandardCharsets.UTF_8)));
                }
            }
            return record;
        }

        @Override
        public void onCompletion(org.apache.kafka.clients.producer.RecordMetadata metadata, Exception e) {
            if (e == null) {
                acknowledged.incrementAndGet();
            } else {
                failed.incrementAndGet();
                failure.compareAndSet(null, e);
            }
        }
    }
}
