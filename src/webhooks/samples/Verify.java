import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.util.Base64;
import java.util.HashMap;
import java.util.HexFormat;
import java.util.Map;
import javax.crypto.Mac;
import javax.crypto.spec.SecretKeySpec;

/**
 * Verifying a webhook of the gateway in Java 17. Copy the two methods; either is enough. Give them the body as it came
 * (bytes), before any JSON parser, and refuse what they refuse with 401.
 *
 * <p>Afterwards: keep event_id and let the same one have its effect once; answer 2xx within the timeout.
 */
public final class Verify {
  private static final long TOLERANCE_S = 300;

  /** X-Timestamp, X-Nonce, X-Signature. target: path with query as requested. Also remember nonces for 300 s. */
  static boolean own(String secret, Map<String, String> headers, String target, byte[] body, long nowS) throws Exception {
    String timestamp = headers.getOrDefault("x-timestamp", "");
    if (!isRecent(timestamp, nowS)) return false;
    String digest = HexFormat.of().formatHex(MessageDigest.getInstance("SHA-256").digest(body));
    String text = String.join("\n", "POST", target, timestamp, headers.getOrDefault("x-nonce", ""), digest);
    byte[] wanted = hmac(secret.getBytes(StandardCharsets.UTF_8), text.getBytes(StandardCharsets.UTF_8));
    return isSame(HexFormat.of().formatHex(wanted), headers.getOrDefault("x-signature", ""));
  }

  /** webhook-id, webhook-timestamp, webhook-signature (Standard Webhooks). */
  static boolean standard(String secret, Map<String, String> headers, byte[] body, long nowS) throws Exception {
    String timestamp = headers.getOrDefault("webhook-timestamp", "");
    if (!isRecent(timestamp, nowS)) return false;
    byte[] key = Base64.getDecoder().decode(secret.replaceFirst("^whsec_", ""));
    byte[] head = (headers.getOrDefault("webhook-id", "") + "." + timestamp + ".").getBytes(StandardCharsets.UTF_8);
    byte[] text = new byte[head.length + body.length];
    System.arraycopy(head, 0, text, 0, head.length);
    System.arraycopy(body, 0, text, head.length, body.length);
    String wanted = "v1," + Base64.getEncoder().encodeToString(hmac(key, text));
    // several while a secret is being rotated
    for (String signature : headers.getOrDefault("webhook-signature", "").split(" ")) {
      if (isSame(wanted, signature)) return true;
    }
    return false;
  }

  private static boolean isRecent(String timestamp, long nowS) {
    return timestamp.matches("\\d{1,12}") && Math.abs(nowS - Long.parseLong(timestamp)) <= TOLERANCE_S;
  }

  private static byte[] hmac(byte[] key, byte[] text) throws Exception {
    Mac mac = Mac.getInstance("HmacSHA256");
    mac.init(new SecretKeySpec(key, "HmacSHA256"));
    return mac.doFinal(text);
  }

  private static boolean isSame(String a, String b) {
    return MessageDigest.isEqual(a.getBytes(StandardCharsets.UTF_8), b.getBytes(StandardCharsets.UTF_8));
  }

  // `java Verify.java < request`: line 1 secret, line 2 target, then headers, an empty line, the body; prints both answers
  public static void main(String[] args) throws Exception {
    String input = new String(System.in.readAllBytes(), StandardCharsets.UTF_8);
    int split = input.indexOf("\n\n");
    String[] head = input.substring(0, split).split("\n");
    byte[] body = input.substring(split + 2).getBytes(StandardCharsets.UTF_8);
    Map<String, String> headers = new HashMap<>();
    for (int i = 2; i < head.length; i++) {
      String[] parts = head[i].split(": ", 2);
      headers.put(parts[0].toLowerCase(), parts[1]);
    }
    long nowS = System.currentTimeMillis() / 1000;
    System.out.printf("own=%b standard=%b%n", own(head[0], headers, head[1], body, nowS), standard(head[0], headers, body, nowS));
  }
}
